import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Device } from "./device.js";
import type { SampleSpec } from "./step.js";
import { softmax } from "./test-reference.js";
import { TinyModel, tinyWeights } from "./test-tiny-model.js";

const prompt = [7, 8, 9];
let device: Device;
let model: TinyModel;
let logits: number[];
/** Tokens from the most likely down. */
let ranked: number[];

beforeAll(async () => {
  device = Device.open({ threads: 1 });
  model = await TinyModel.load(device, tinyWeights("F32"));
  logits = [...(await model.step(prompt, 0)).logits.subarray(200)];
  ranked = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]!);
});
afterAll(async () => {
  model.dispose();
  await device.dispose();
});

async function sample(options: Omit<SampleSpec, "output">) {
  return (await model.step(prompt, 0, { sample: options })).samples[0]!;
}

/** The tokens of many draws, in one step. */
async function draws(count: number, options: Omit<SampleSpec, "output">): Promise<number[]> {
  const { samples } = await model.plan.run({
    tokens: Int32Array.from(prompt),
    sequences: [{ rowCount: 3, contextLength: 3, blockTable: Int32Array.of(0) }],
    outputs: Int32Array.of(2),
    samples: Array.from({ length: count }, (_, seed) => ({ output: 0, seed, ...options })),
  });
  return samples.map(({ token }) => token);
}

describe("sampling", () => {
  it("is greedy at temperature 0, whatever else is set", async () => {
    expect((await sample({})).token).toBe(ranked[0]);
    expect((await sample({ temperature: 0, topK: 50, topP: 0.9, seed: 5 })).token).toBe(ranked[0]);
  });

  it("returns log-probabilities of the unmodified logits", async () => {
    const logprobs = softmax(logits).map(Math.log);
    const { token, logprob, top } = await sample({ logprobs: 4, bias: new Map([[ranked[0]!, -100]]) });
    expect(token).toBe(ranked[1]);
    expect(logprob).toBeCloseTo(logprobs[token]!, 4);
    expect(top.map((entry) => entry.token)).toEqual(ranked.slice(0, 4));
    for (const entry of top) expect(entry.logprob).toBeCloseTo(logprobs[entry.token]!, 4);
    const chosenOnly = await sample({ logprobs: 0 });
    expect(chosenOnly.top).toEqual([]);
    expect(chosenOnly.logprob).toBeCloseTo(logprobs[ranked[0]!]!, 4);
  });

  it("adds biases and bans tokens", async () => {
    expect((await sample({ bias: new Map([[42, 1000]]) })).token).toBe(42);
    const banned = new Map(ranked.slice(0, 3).map((token) => [token, Number.NEGATIVE_INFINITY] as const));
    expect((await sample({ bias: banned })).token).toBe(ranked[3]);
  });

  it("penalizes tokens of the history", async () => {
    const history = Int32Array.of(ranked[0]!, ranked[0]!, ranked[1]!);
    const best = (adjust: (logit: number, count: number) => number) => {
      const adjusted = logits.map((logit, token) => {
        const count = history.filter((seen) => seen === token).length;
        return count === 0 ? logit : adjust(logit, count);
      });
      return adjusted.indexOf(Math.max(...adjusted));
    };
    // each value is enough to change the outcome, and none but the formula gives all of them
    const gap = logits[ranked[0]!]! - logits[ranked[1]!]!;
    for (const presencePenalty of [gap / 2, 100]) {
      expect((await sample({ history, presencePenalty })).token).toBe(best((logit) => logit - presencePenalty));
    }
    for (const frequencyPenalty of [gap * 0.9, gap * 1.1, 100]) {
      const expected = best((logit, count) => logit - frequencyPenalty * count);
      expect((await sample({ history, frequencyPenalty })).token).toBe(expected);
    }
    for (const repetitionPenalty of [1.2, 2, 50]) {
      const expected = best((logit) => (logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty));
      expect((await sample({ history, repetitionPenalty })).token).toBe(expected);
    }
    expect((await sample({ presencePenalty: 100 })).token).toBe(ranked[0]);
  });

  it("draws the same token for the same seed, of 64 bits", async () => {
    const options = { temperature: 1.5 };
    const first = await draws(32, options);
    expect(await draws(32, options)).toEqual(first);
    expect(new Set(first).size).toBeGreaterThan(4);
    const high = await Promise.all(
      Array.from({ length: 32 }, (_, i) => sample({ ...options, seed: BigInt(i + 1) << 40n })),
    );
    expect(new Set(high.map(({ token }) => token)).size).toBeGreaterThan(4);
    expect((await sample({ ...options, seed: 2n ** 53n - 1n })).token).toBe(
      (await sample({ ...options, seed: Number.MAX_SAFE_INTEGER })).token,
    );
  });

  it("draws with the probabilities of the softmax", async () => {
    const temperature = 0.8;
    const probabilities = softmax(logits.map((logit) => logit / temperature));
    const count = 4000;
    const drawn = await draws(count, { temperature });
    for (const token of ranked.slice(0, 5)) {
      const p = probabilities[token]!;
      const seen = drawn.filter((other) => other === token).length / count;
      expect(Math.abs(seen - p)).toBeLessThan(4.5 * Math.sqrt((p * (1 - p)) / count));
    }
  });

  it("cuts to top-k, top-p and min-p", async () => {
    const temperature = 2;
    const probabilities = softmax(logits.map((logit) => logit / temperature));
    const drawn = async (options: object) => new Set(await draws(2000, { temperature, ...options }));
    expect(await drawn({ topK: 1 })).toEqual(new Set([ranked[0]]));
    expect(await drawn({ topK: 3 })).toEqual(new Set(ranked.slice(0, 3)));
    expect(await drawn({ minP: 1 })).toEqual(new Set([ranked[0]]));
    expect(await drawn({ topP: 0 })).toEqual(new Set([ranked[0]]));
    const [first, second, third] = ranked.map((token) => probabilities[token]!) as [number, number, number];
    expect(await drawn({ topP: first + second / 2 })).toEqual(new Set(ranked.slice(0, 2)));
    const share = (second + third) / 2 / first;
    expect(await drawn({ minP: share })).toEqual(new Set(ranked.slice(0, 2)));
  });
});
