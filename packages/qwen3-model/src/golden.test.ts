import { goldens, klDivergence } from "@niwaki/testing";
import { describe, expect, it } from "vitest";
import type { LoadOptions } from "./model.js";
import { allLogits, sameBits } from "./test-helpers.js";

// KL(reference || ours) where llama.cpp cannot read the file: its Q2_0 blocks are of the older 128 weights.
const BOUND_WITHOUT_PEER = 5e-5;

describe.each(goldens())("$name", (golden) => {
  const run = (options: LoadOptions = {}) => allLogits(golden.model, golden.tokens, options);

  it("is at least as close to the float64 reference as llama.cpp", async () => {
    const { mean } = klDivergence(golden.logits, await run(), golden.shape[1]);
    expect(mean).toBeLessThanOrEqual(golden.llamaCppMeanKl ?? BOUND_WITHOUT_PEER);
  });

  it("is closer still with a float32 cache", async () => {
    const { mean } = klDivergence(golden.logits, await run({ kvType: "f32" }), golden.shape[1]);
    expect(mean).toBeLessThanOrEqual(golden.llamaCppMeanKl ?? BOUND_WITHOUT_PEER);
  });

  it("with 8-bit keys and values is still at least as close as llama.cpp, whose are float16", async () => {
    const { mean } = klDivergence(golden.logits, await run({ kvType: "q8" }), golden.shape[1]);
    expect(mean).toBeLessThanOrEqual(golden.llamaCppMeanKl ?? BOUND_WITHOUT_PEER);
  });

  it.each(["f16", "q8"] as const)("gives the same bits whole and token by token, in %s", async (kvType) => {
    sameBits(await run({ kvType, chunkSize: 1 }), await run({ kvType }));
  });
});
