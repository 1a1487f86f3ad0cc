import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

test("the program shares, copies and restores blocks as its README says", () => {
  const program = fileURLToPath(new URL("main.mjs", import.meta.url));
  assert.deepEqual(execFileSync(process.execPath, [program], { encoding: "utf8" }).split("\n"), [
    "a: blocks [0,1,2], 10 tokens, 0 of them cached; 5 blocks free",
    "b: blocks [0,1,3], 10 tokens, 8 of them cached; 4 blocks free",
    "c: blocks [0,1,4], 11 tokens, a fork of a; 3 blocks free",
    "c, layer 1, position 10: K [30,1], V [-10,1]",
    "another cache finds 8 tokens of the snapshot of a",
    "",
  ]);
});
