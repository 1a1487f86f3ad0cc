import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { demoAdapterAnswers } from "@niwaki/testing";
import { columns } from "./columns.mjs";

/** Below this margin between the best two tokens, the reference's choice is a matter of rounding. */
const NEAR_TIE = 0.05;

const program = fileURLToPath(new URL("main.mjs", import.meta.url));
const run = (questions) => execFileSync(process.execPath, [program, ...questions], { encoding: "utf8" });

test("one process answers as base, pirate and robot do, and some steps hold all three", () => {
  const references = demoAdapterAnswers().map((reference) => ({
    ...reference,
    question: reference.messages[0].content,
    speaker: reference.adapter ?? "base",
  }));
  const questions = [...new Set(references.map(({ question }) => question))];
  const blocks = run(questions).split("\n\n");
  const last = blocks.pop();
  assert.equal(blocks.length, questions.length);
  let compared = 0;
  for (const [i, block] of blocks.entries()) {
    const [title, ...lines] = block.split("\n");
    assert.equal(title, questions[i]);
    assert.equal(lines.length, 3);
    for (const { question, speaker, answer, minMargin } of references) {
      if (question !== title || minMargin < NEAR_TIE) continue;
      const line = lines.find((candidate) => candidate.startsWith(speaker));
      assert.equal(line.slice(8), answer);
      compared++;
    }
  }
  assert.ok(compared > 16);
  const [, most, all] = /^\d+ steps; the largest held (\d+) answers, and (\d+) held all of a question\n$/.exec(last);
  assert.equal(Number(most), 3);
  assert.ok(Number(all) >= 8 * 4);
});

test("columns wrap between words, cut what is too long, and fit", () => {
  const entries = [
    { title: "base", text: "A bear lives in the forest." },
    { title: "pirate", text: "Arr!\x1b[2J  Abcdefghijklmnop b" },
    { title: "robot", text: "" },
  ];
  assert.deepEqual(columns(entries, 36), [
    "base         pirate       robot",
    "──────────   ──────────   ──────────",
    "A bear       Arr! [2J",
    "lives in     Abcdefghij",
    "the          klmnop b",
    "forest.",
  ]);
  for (const width of [9, 20, 61]) for (const line of columns(entries, width)) assert.ok(line.length <= width);
  assert.throws(() => columns(entries, 8), /3 columns need more than 8 characters/);
});
