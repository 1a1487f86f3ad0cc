import { describe, expect, test } from "vitest";
import { goldens } from "./fixtures.js";
import { randomTokens } from "./random.js";
import { ReferenceModel } from "./reference-model.js";

const { model: path } = goldens()[0]!;
const tokens = randomTokens(6, 1003, 1);
/** Rank 1 on a [256, 256] matrix: A = 1, 0, 0, …; B = value, 0, 0, … */
const target = (value: number, scale = 1) => ({
  tensor: "blk.0.attn_q.weight",
  rank: 1,
  scale,
  a: Float64Array.from({ length: 256 }, (_, i) => (i === 0 ? 1 : 0)),
  b: Float64Array.from({ length: 256 }, (_, i) => (i === 0 ? value : 0)),
});

describe("ReferenceModel with adapters", () => {
  test("scale, weight and B are one factor, and the terms of a mix add up", async () => {
    const model = await ReferenceModel.open(path);
    const expected = model.forward(tokens, [{ targets: [target(6)] }]);
    expect(expected).not.toEqual(model.forward(tokens));
    const others = [
      [{ targets: [target(3, 2)] }],
      [{ targets: [target(4)], weight: 1.5 }],
      [{ targets: [target(8)] }, { targets: [target(1)], weight: -2 }],
    ];
    for (const adapters of others) {
      const logits = model.forward(tokens, adapters);
      expect(Math.max(...logits.map((value, i) => Math.abs(value - expected[i]!)))).toBeLessThan(1e-9);
    }
  });

  test("a weight of 0 and a B of 0 change nothing", async () => {
    const model = await ReferenceModel.open(path);
    const base = model.forward(tokens);
    expect(model.forward(tokens, [{ targets: [target(5)], weight: 0 }])).toEqual(base);
    expect(model.forward(tokens, [{ targets: [target(0)] }])).toEqual(base);
  });

  test("refuses factors of another size", async () => {
    const model = await ReferenceModel.open(path);
    expect(() => model.forward([1], [{ targets: [{ ...target(1), rank: 2 }] }])).toThrow(RangeError);
    const magnitude = new Float64Array(3);
    expect(() => model.forward([1], [{ targets: [{ ...target(1), magnitude }] }])).toThrow(
      "blk.0.attn_q.weight has 256 rows, the magnitude 3 values",
    );
  });
});
