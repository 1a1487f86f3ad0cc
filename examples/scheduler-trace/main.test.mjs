import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

test("the program shows how the policies differ, and draws a timeline", () => {
  const program = fileURLToPath(new URL("main.mjs", import.meta.url));
  const folder = mkdtempSync(join(tmpdir(), "scheduler-trace-"));
  try {
    const svg = join(folder, "timeline.svg");
    const lines = execFileSync(process.execPath, [program, svg], { encoding: "utf8" }).trimEnd().split("\n");
    assert.equal(lines.length, 6);
    const rows = lines.slice(1, 5).map((line) => {
      const [, name, numbers] = /^(.*?) {2,}(.*)$/.exec(line);
      const [, firstP99, , , betweenMax] = numbers.split(/ +/).map(Number);
      return [name, { firstP99, betweenMax }];
    });
    const { "prefill-first": first, interleaved, "decode-priority": decode } = Object.fromEntries(rows);
    const target = Object.fromEntries(rows)["interleaved, 40 ms"];
    assert.ok(first.firstP99 <= interleaved.firstP99 && interleaved.firstP99 < decode.firstP99);
    assert.ok(decode.betweenMax < interleaved.betweenMax && interleaved.betweenMax < first.betweenMax);
    assert.ok(target.betweenMax <= 42 && interleaved.betweenMax > 100);
    // K and V: 2 * 28 layers * 8 heads * 128 * 2 bytes * 3000; scores: 16 heads * 512 * 2560 * 4 bytes.
    assert.equal(lines[5], "a document: 344 MB of K and V, 84 MB of scores");
    const drawing = readFileSync(svg, "utf8");
    assert.match(drawing, /^<svg [\s\S]*<\/svg>\n$/);
    assert.ok(!/NaN|Infinity|undefined/.test(drawing));
    assert.ok(drawing.match(/M[\d.]+ [\d.]+V/g).length > 1000);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
