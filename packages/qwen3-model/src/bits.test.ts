import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cpuTiers } from "@niwaki/kernels-native";
import { goldens, klDivergence, ReferenceModel, randomTokens, shapes, writeRandomModel } from "@niwaki/testing";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Qwen3Model } from "./model.js";
import { allLogits, collectLogits, sameBits } from "./test-helpers.js";

/** Everything that must not change a bit of a sequence's logits. */
function sameBitsWhatever(model: () => { path: string; tokens: readonly number[] }, chunkSizes: number[]): void {
  let whole: Float32Array;
  beforeAll(async () => {
    whole = await allLogits(model().path, model().tokens, { chunkSize: 256, threads: 1 });
  });

  it.each(cpuTiers())("tier %s", async (tier) => {
    sameBits(await allLogits(model().path, model().tokens, { tier, threads: 2 }), whole);
  });

  it.each([2, 3])("%i threads", async (threads) => {
    sameBits(await allLogits(model().path, model().tokens, { threads }), whole);
  });

  it.each(chunkSizes)("chunks of %i", async (chunkSize) => {
    sameBits(await allLogits(model().path, model().tokens, { chunkSize }), whole);
  });

  it("beside three other sequences", async () => {
    const { path, tokens } = model();
    await using loaded = await Qwen3Model.load(path, { contextLength: 256, kvCacheTokens: 1024, chunkSize: 7 });
    const others = [0, 1, 2].map(async (seed) => {
      const prompt = randomTokens(5 + 20 * seed, loaded.config.vocabulary, seed);
      let count = 0;
      for await (const piece of loaded.generate(prompt, { maxTokens: 12 })) count += piece.tokens.length;
      return count;
    });
    sameBits(await collectLogits(loaded, tokens), whole);
    for (const count of await Promise.all(others)) expect(count).toBeGreaterThan(0);
  });
}

describe.each(goldens())("$name: the same bits", ({ model, tokens }) => {
  sameBitsWhatever(() => ({ path: model, tokens }), [1, 7, 64]);
});

describe("1.7B shape, two layers: the same bits", () => {
  const directory = mkdtempSync(join(tmpdir(), "niwaki-"));
  const path = join(directory, "two-layers.gguf");
  const shape = { ...shapes["1.7b"], layers: 2, vocabulary: 4099 };
  beforeAll(() => writeRandomModel(path, shape, 17), 120_000);
  afterAll(() => rmSync(directory, { recursive: true }));

  sameBitsWhatever(() => ({ path, tokens: randomTokens(80, shape.vocabulary, 3) }), [1, 7, 64]);

  it("is as close to the float64 reference as llama.cpp is on the fixtures of this type", async () => {
    const tokens = randomTokens(24, shape.vocabulary, 4);
    const reference = (await ReferenceModel.open(path)).forward(tokens);
    const { mean } = klDivergence(reference, await allLogits(path, tokens), shape.vocabulary);
    expect(mean).toBeLessThanOrEqual(goldens().find(({ name }) => name === "q1-tied")!.llamaCppMeanKl!);
  });
});
