import { existsSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { demoAdapterAnswers, demoAnswers, fixturePath, goldens } from "./fixtures.js";

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

  test("seven adapters and two mixes have finite logits", () => {
    const all = goldens();
    const adapters = all.flatMap((golden) => golden.adapters);
    expect(adapters.map(({ name, scale }) => [name, scale])).toEqual([
      ["q1-tied.lora-all", 1],
      ["q1-tied.lora-qv-rslora", 1],
      ["q1-tied.peft-dora", 1],
      ["q1-tied.peft-patterns", 1],
      ["q1-tied.peft-some-layers", 1],
      ["q1-untied-yarn.lora-all", 1],
      ["q1-untied-yarn.lora-qv-rslora", 1],
    ]);
    const mixes = all.flatMap(({ mix }) => (mix === null ? [] : [mix]));
    expect(mixes.map(({ of }) => of.map(([, weight]) => weight))).toEqual([
      [0.5, -1.25],
      [0.5, -1.25],
    ]);
    for (const { logits } of [...adapters, ...mixes]) {
      expect(logits).toHaveLength(48 * 1003);
      expect(logits.every(Number.isFinite)).toBe(true);
    }
  });

  test("there are eight demo answers of the base and of each adapter", () => {
    const counts = new Map<string | null, number>();
    for (const { adapter } of demoAdapterAnswers()) counts.set(adapter, (counts.get(adapter) ?? 0) + 1);
    expect([...counts]).toEqual([
      [null, 8],
      ["pirate", 8],
      ["robot", 8],
    ]);
  });

  test("fixturePath is absolute", () => {
    expect(existsSync(fixturePath("qwen3-tokenizer.json"))).toBe(true);
  });
});
