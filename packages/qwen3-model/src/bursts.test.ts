import { demoModelPath } from "@niwaki/demo-model";
import { randomTokens } from "@niwaki/testing";
import { describe, expect, it } from "vitest";
import type { StepRecord } from "./engine-statistics.js";
import { type LoadOptions, Qwen3Model } from "./model.js";
import type { GenerateOptions } from "./options.js";

/** Answers that run alone and together, and end in every way. */
const requests: GenerateOptions[] = [
  { maxTokens: 50, logprobs: 2 },
  { maxTokens: 50, temperature: 1, topP: 0.9, seed: 3, logprobs: 0 },
  { temperature: 1.5, seed: 4 },
  { maxTokens: 40, temperature: 1, seed: 5, n: 3 },
  { maxTokens: 40, repetitionPenalty: 1.2 },
  { maxTokens: 40, temperature: 1, seed: 6, stop: ["e", "an"] },
];

async function run(options: LoadOptions) {
  const steps: StepRecord[] = [];
  await using model = await Qwen3Model.load(demoModelPath, {
    contextLength: 256,
    kvCacheTokens: 2048,
    ...options,
    onStep: (step) => steps.push(step),
  });
  const answer = async (options: GenerateOptions, i: number) => {
    const pieces = [];
    for await (const piece of model.generate(randomTokens(5 + 9 * i, 2000, i), options)) pieces.push(piece);
    // With several answers, their pieces come in any order.
    return pieces.sort((a, b) => a.choice - b.choice);
  };
  const answers = [];
  for (const [i, options] of requests.entries()) answers.push(await answer(options, i));
  const together = await Promise.all(requests.map(answer));
  return { answers, together, steps, statistics: model.statistics() };
}

describe("bursts", () => {
  it("give the same tokens, texts and log-probabilities as steps one by one", async () => {
    const one = await run({ burstMilliseconds: 0 });
    expect(one.steps.every(({ steps }) => steps === 1)).toBe(true);
    const { steps, answers, together, statistics } = await run({ burstMilliseconds: 1000 });
    expect(Math.max(...steps.map(({ steps }) => steps))).toBe(16);
    expect(steps.length).toBeLessThan(one.steps.length / 2);
    expect(answers).toEqual(one.answers);
    expect(together).toEqual(one.answers);
    expect(statistics.steps).toBe(steps.reduce((sum, { steps }) => sum + steps, 0));
    // What penalties look at is known one token after the other.
    const penalized = steps.filter(({ chunks }) => chunks.some(({ request }) => request === 7));
    expect(penalized.length).toBeGreaterThan(5);
    expect(penalized.every(({ steps }) => steps === 1)).toBe(true);
  });

  it("take no longer than they may", async () => {
    for (const options of [{ burstMilliseconds: 0.001 }, { targetMilliseconds: 0.001 }]) {
      const { steps } = await run(options);
      expect(steps.every(({ steps }) => steps === 1)).toBe(true);
    }
  });

  it("end with the token that ends the answer", async () => {
    await using model = await Qwen3Model.load(demoModelPath, { burstMilliseconds: 1000 });
    const prompt = model.promptIds("Once upon a time");
    let answered = 0;
    for await (const piece of model.generate(prompt, { temperature: 1, seed: 1 })) {
      answered += piece.tokens.length;
      if (piece.finishReason !== null) expect(piece.finishReason).toBe("stop");
    }
    expect(answered).toBeGreaterThan(20);
    expect(model.statistics().computedTokens).toBe(prompt.length + answered);
  });

  it.each([-1, Number.NaN, Number.POSITIVE_INFINITY])("cannot take %s ms", async (burstMilliseconds) => {
    await expect(Qwen3Model.load(demoModelPath, { burstMilliseconds })).rejects.toMatchObject({
      code: "invalid-option",
      detail: { option: "burstMilliseconds" },
    });
  });
});
