import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

test("the program tells a story and answers three questions", () => {
  const program = fileURLToPath(new URL("main.mjs", import.meta.url));
  const lines = execFileSync(process.execPath, [program], { encoding: "utf8" }).trimEnd().split("\n");
  assert.match(lines[0], /Mia/);
  assert.deepEqual(lines.slice(-3), [
    "What is 3 + 4? 3 + 4 = 7",
    "What is the opposite of hot? The opposite of hot is cold.",
    "Where does a bear live? A bear lives in the forest.",
  ]);
});
