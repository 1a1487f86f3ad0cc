import { describe, expect, test } from "vitest";
import { fixturePath, goldens } from "./fixtures.js";
import { klDivergence } from "./kl-divergence.js";
import { ReferenceModel } from "./reference-model.js";

describe("ReferenceModel", () => {
  test.each(goldens())("gives the golden logits of $name", async (golden) => {
    const model = await ReferenceModel.open(golden.model);
    expect(model.vocabulary).toBe(golden.shape[1]);
    const logits = model.forward(golden.tokens);
    expect(logits).toHaveLength(golden.logits.length);
    // The goldens are rounded to float32: 5e-7 for logits up to 8.
    let largest = 0;
    for (let i = 0; i < logits.length; i++) largest = Math.max(largest, Math.abs(logits[i]! - golden.logits[i]!));
    expect(largest).toBeLessThan(1e-6);
    expect(klDivergence(golden.logits, logits, golden.shape[1]).max).toBeLessThan(1e-12);
  });

  test("is causal: the logits of a prefix do not depend on what follows", async () => {
    const { model: path, tokens, shape } = goldens()[0]!;
    const model = await ReferenceModel.open(path);
    for (const length of [1, 6]) {
      expect(model.forward(tokens.slice(0, length))).toEqual(
        model.forward(tokens.slice(0, 8)).slice(0, length * shape[1]),
      );
    }
  });

  test("refuses tokens outside the vocabulary and files that are no model", async () => {
    const model = await ReferenceModel.open(goldens()[0]!.model);
    expect(() => model.forward([1, 1003])).toThrow("token 1003 at position 1 is not in [0, 1003)");
    expect(() => model.forward([-1])).toThrow(RangeError);
    expect(() => model.forward([0.5])).toThrow(RangeError);
    await expect(ReferenceModel.open(fixturePath("index.json"))).rejects.toThrow();
  });
});
