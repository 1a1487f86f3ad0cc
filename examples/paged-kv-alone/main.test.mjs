import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

test("the program shares, refuses and reuses blocks as its README says", () => {
  const program = fileURLToPath(new URL("main.mjs", import.meta.url));
  assert.deepEqual(execFileSync(process.execPath, [program], { encoding: "utf8" }).split("\n"), [
    "a: blocks [0,2], 8 of 8 tokens; 100% in use",
    "b: blocks [1,3], 8 of 8 tokens; 100% in use",
    "a: blocks [0,2,3], 9 of 12 tokens; 75% in use",
    "a, layer 1, position 8: K [9,1], V [-9,1]",
    "UNWRITTEN_SLOT: K and V of position 9 in layer 0 were never written (9 tokens are)",
    "",
  ]);
});
