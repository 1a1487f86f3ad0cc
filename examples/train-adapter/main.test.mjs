import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";
import { lossPlot } from "./loss-plot.mjs";
import { heldOut, lessonLines, lessons } from "./rhymes.mjs";

const folder = mkdtempSync(join(tmpdir(), "niwaki-train-adapter-"));
after(() => rmSync(folder, { recursive: true }));

test("the lessons are 200 rhymes, none of a question that is asked afterwards", () => {
  assert.equal(readFileSync(new URL("rhymes.jsonl", import.meta.url), "utf8"), lessonLines());
  assert.equal(lessons().length, 200);
  for (const { messages } of lessons()) {
    assert.ok(!heldOut.includes(messages[0].content));
    assert.match(messages[1].content, /^Tralala! .+, [a-z ]+!$/);
  }
});

test("the program trains, the loss falls, and the answers change", () => {
  const program = fileURLToPath(new URL("main.mjs", import.meta.url));
  const plot = join(folder, "loss.svg");
  const adapter = join(folder, "adapter");
  const options = ["--steps", "60", "--adapter", adapter, "--plot", plot];
  const output = execFileSync(process.execPath, [program, ...options], { encoding: "utf8", stdio: "pipe" });
  const [, first, last] = output.match(/loss ([\d.]+) -> ([\d.]+)/);
  assert.ok(Number(last) < Number(first) / 4, output);
  assert.deepEqual(readdirSync(adapter).sort(), ["adapter_config.json", "adapter_model.safetensors"]);
  assert.equal(readFileSync(plot, "utf8").match(/<circle /g).length, 60);
  assert.match(output, /What is 3 \+ 4\?\n {2}before: 3 \+ 4 = 7\n {2}after: {2}Tralala! /);
});

test("a plot has a dot for each step", () => {
  const svg = lossPlot([8, 4, 2], "Loss");
  assert.match(svg, /cx="56\.0" cy="32\.0"/);
  assert.equal(svg.match(/<circle /g).length, 3);
});
