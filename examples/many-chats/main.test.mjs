import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { frame } from "./view.mjs";

const state = {
  step: {
    number: 7,
    steps: 1,
    rows: 20,
    chunks: [
      { start: 40, end: 41 },
      { start: 12, end: 13 },
      { start: 0, end: 18 },
    ],
    started: 100,
    ended: 104.25,
  },
  chats: [
    { number: 1, state: "done", tokens: 60, text: "The end." },
    { number: 2, state: "running", tokens: 9, text: `A fox\nlived\x1b[2J in the ${"deep ".repeat(40)}woods` },
    { number: 3, state: "to come", tokens: 0, text: "" },
  ],
  blocks: Uint8Array.from({ length: 100 }, (_, i) => (i < 5 ? 3 : i < 50 ? 2 : i < 60 ? 1 : 0)),
  statistics: { running: 1, waiting: 0, preemptions: 2, cache: { usedBlocks: 50, blocks: 100, hitRate: 0.25 } },
  tokensPerSecond: 345.6,
};
// biome-ignore lint/suspicious/noControlCharactersInRegex: colors
const plain = (line) => line.replace(/\x1b\[\d+m/g, "");

test("a frame shows each block, each row of the batch, and the chats that run first", () => {
  const lines = frame(state, { columns: 60, rows: 24 }).map(plain);
  assert.deepEqual(lines.slice(0, 2), ["1 chats run, 0 wait, 1 of 3 are done, 2 preemptions", "346 tokens/s"]);
  assert.deepEqual(lines.slice(3, 5), ["step 7: 20 rows of 3 chats in 4.3 ms", "▮".repeat(20)]);
  const burst = frame({ ...state, step: { ...state.step, steps: 4 } }, { columns: 60, rows: 24 });
  assert.equal(plain(burst[3]), "step 7: 4 times 20 rows of 3 chats in 4.3 ms");
  assert.deepEqual(lines.slice(6, 8), ["█".repeat(50) + "▒".repeat(10), "·".repeat(40)]);
  assert.equal(lines[8], "· free  ▒ cached  █ held  █ shared  50 of 100 blocks, hit rate 25%");
  assert.match(lines[10], /^ {2}2 running {4}9 .*deep woods$/);
  assert.equal(lines[10].length, 60);
  assert.match(lines[11], /^ {2}1 done {6}60 The end\.$/);
  assert.match(lines[12], /^ {2}3 to come {4}0 $/);
});

test("a frame fits the terminal and holds no control character of a chat", () => {
  for (const size of [
    { columns: 20, rows: 10 },
    { columns: 200, rows: 50 },
  ]) {
    const lines = frame(state, size).map(plain);
    assert.ok(lines.length <= size.rows);
    assert.ok(lines.every((line) => !line.includes("\x1b")));
    for (const line of lines.slice(6, 8)) assert.ok(line.length <= size.columns);
  }
});

test("the program lets all chats talk to their end", () => {
  const program = fileURLToPath(new URL("main.mjs", import.meta.url));
  const options = ["--chats", "16", "--every", "5", "--tokens", "40"];
  const output = execFileSync(process.execPath, [program, ...options], { encoding: "utf8" });
  assert.match(output, /^16 chats, 640 tokens in \d+\.\d s, in \d+ steps\n/);
  const [, hits] = /\n(\d+) tokens of prompts were cached/.exec(output);
  // Fifteen of the sixteen find at least one block of the beginning.
  assert.ok(Number(hits) >= 15 * 16);
});
