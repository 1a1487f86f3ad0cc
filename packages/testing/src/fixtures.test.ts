import { existsSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { demoAnswers, fixturePath, goldens } from "./fixtures.js";

describe("fixtures", () => {
  test("goldens have finite logits of the stated shape", () => {
    const all = goldens();
    expect(all.map((golden) => golden.name)).toEqual([
      "q1-tied",
      "q1-untied-yarn",
      "q2-mqa",
      "q2-g128-id142",
      "q2-g128-id42",
      "mixed-types",
    ]);
    for (const golden of all) {
      expect(existsSync(golden.model)).toBe(true);
      expect(golden.shape).toEqual([48, 1003]);
      expect(golden.tokens).toHaveLength(48);
      expect(golden.logits).toHaveLength(48 * 1003);
      expect(golden.logits.every(Number.isFinite)).toBe(true);
    }
    expect(all.map((golden) => golden.llamaCppMeanKl)).toEqual([
      0.0002139849695296813,
      0.0002977750832340036,
      7.576648496971342e-6,
      null,
      null,
      0.000132791499886742,
    ]);
  });

  test("there are 66 demo answers, six of them without messages", () => {
    const answers = demoAnswers();
    expect(answers).toHaveLength(66);
    expect(answers.filter((answer) => answer.messages === null)).toHaveLength(6);
    expect(answers.filter((answer) => answer.right)).toHaveLength(64);
  });

  test("fixturePath is absolute", () => {
    expect(existsSync(fixturePath("qwen3-tokenizer.json"))).toBe(true);
  });
});
