import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { demoModelPath } from "@niwaki/demo-model";
import { randomTokens } from "@niwaki/testing";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { StepRecord } from "./engine-statistics.js";
import { type LoadOptions, Qwen3Model } from "./model.js";
import type { GenerateOptions } from "./options.js";

interface Outcome {
  ids: number[];
  logprobs: number[];
  reason: string | null;
}

async function outcome(model: Qwen3Model, prompt: number[], options: GenerateOptions): Promise<Outcome> {
  const ids: number[] = [];
  const logprobs: number[] = [];
  let reason: string | null = null;
  for await (const piece of model.generate(prompt, { logprobs: 0, ...options })) {
    for (const token of piece.tokens) {
      ids.push(token.id);
      logprobs.push(token.logprob!);
    }
    reason = piece.finishReason;
  }
  return { ids, logprobs, reason };
}

const moment = (milliseconds: number) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** A model for one test, with the steps it ran. */
async function traced(options: LoadOptions): Promise<{ model: Qwen3Model; steps: StepRecord[] }> {
  const steps: StepRecord[] = [];
  return { model: await Qwen3Model.load(demoModelPath, { ...options, onStep: (step) => steps.push(step) }), steps };
}

/** Requests of mixed lengths, some with common beginnings, some greedy and some drawn. */
function mixedRequests(count: number): { prompt: number[]; options: GenerateOptions }[] {
  const shared = randomTokens(70, 2000, 99);
  return Array.from({ length: count }, (_, i) => {
    const own = randomTokens(3 + ((i * 29) % 90), 2000, i);
    const prompt = i % 3 === 0 ? [...shared.slice(0, 16 + ((i * 7) % 55)), ...own] : own;
    const drawn = i % 2 === 0 ? { temperature: 1, topP: 0.95, seed: i } : {};
    return { prompt, options: { ...drawn, maxTokens: 1 + ((i * 13) % 30), priority: i % 3, client: `c${i % 4}` } };
  });
}

/** No answer of the model ends before its last token with this bias. */
const endlessly = (model: Qwen3Model) =>
  new Map(model.tokenizer.endOfTurnTokenIds.map((id) => [id, Number.NEGATIVE_INFINITY]));

describe("64 requests of mixed lengths and arrivals", () => {
  const requests = mixedRequests(64);
  let alone: Outcome[];
  beforeAll(async () => {
    await using model = await Qwen3Model.load(demoModelPath, { contextLength: 256 });
    // Four that come first and run long: 812 tokens, more than a small cache has blocks for.
    for (let i = 0; i < 4; i++) {
      requests[i] = { prompt: [i, i + 1, i + 2], options: { maxTokens: 200, logitBias: endlessly(model) } };
    }
    alone = [];
    for (const [i, { prompt, options }] of requests.entries()) {
      // A salt of its own: nothing is found in the cache.
      alone.push(await outcome(model, prompt, { ...options, cacheSalt: `${i}` }));
    }
    expect(model.statistics().cache.hitTokens).toBe(0);
  });

  const together = async (options: LoadOptions) => {
    const { model, steps } = await traced({ contextLength: 256, ...options });
    const all = await Promise.all(
      requests.map(async ({ prompt, options }, i) => {
        if (i >= 4) await moment((i * 17) % 23);
        return await outcome(model, prompt, options);
      }),
    );
    const statistics = model.statistics();
    expect(statistics.cache).toMatchObject({ usedBlocks: 0, sequences: 0 });
    expect([statistics.running, statistics.waiting]).toEqual([0, 0]);
    await model.dispose();
    return { all, steps, statistics };
  };

  it("give the same tokens and log-probabilities, to the bit, as each alone", async () => {
    const { all, statistics } = await together({ kvCacheTokens: 4096 });
    expect(all).toEqual(alone);
    expect(statistics.cache.hitTokens).toBeGreaterThan(0);
  });

  it("also when a small cache takes blocks from running requests", async () => {
    const { all, statistics } = await together({ kvCacheTokens: 512, chunkSize: 24 });
    expect(all).toEqual(alone);
    expect(statistics.preemptions).toBeGreaterThan(0);
    expect(statistics.cache.evictedBlocks).toBeGreaterThan(0);
  });

  it.each(["prefill-first", "decode-priority"] as const)("also with the policy %s", async (policy) => {
    expect((await together({ kvCacheTokens: 2048, policy })).all).toEqual(alone);
  });

  it("also when steps must keep to a time", async () => {
    expect((await together({ kvCacheTokens: 2048, targetMilliseconds: 2 })).all).toEqual(alone);
  });
});

describe("the engine", () => {
  let model: Qwen3Model;
  beforeAll(async () => {
    model = await Qwen3Model.load(demoModelPath, { contextLength: 512, kvCacheTokens: 4096 });
  });
  afterAll(() => model.dispose());
  const hits = () => model.statistics().cache.hitTokens;

  it("finds a prompt that was computed before, but for its last tokens", async () => {
    const prompt = randomTokens(100, 2000, 1);
    const first = await outcome(model, prompt, { maxTokens: 4 });
    const before = hits();
    expect(await outcome(model, prompt, { maxTokens: 4 })).toEqual(first);
    expect(hits() - before).toBe(96);
  });

  it("shows what its blocks are doing", async () => {
    const { model } = await traced({ contextLength: 64 });
    const blocks = () => [...model.blockMap()].join("");
    expect(blocks()).toBe("0000");
    const logitBias = endlessly(model);
    const answer = model.generate(randomTokens(40, 2000, 8), { maxTokens: 4, logitBias });
    await answer.next();
    expect(blocks()).toBe("2220");
    await answer.return();
    await outcome(model, [1], { maxTokens: 1 });
    expect(blocks()).toBe("1100");
    await model.dispose();
  });

  it("does not share what has another salt", async () => {
    const prompt = randomTokens(100, 2000, 2);
    await outcome(model, prompt, { maxTokens: 1, cacheSalt: "a" });
    const before = hits();
    await outcome(model, prompt, { maxTokens: 1, cacheSalt: "b" });
    await outcome(model, prompt, { maxTokens: 1 });
    expect(hits() - before).toBe(0);
    await outcome(model, prompt, { maxTokens: 1, cacheSalt: "a" });
    expect(hits() - before).toBe(96);
  });

  it("computes once what prompts that come together share", async () => {
    const { model, steps } = await traced({ contextLength: 512, kvCacheTokens: 4096, chunkSize: 64 });
    const shared = randomTokens(256, 2000, 3);
    await Promise.all(
      Array.from({ length: 8 }, (_, i) => outcome(model, [...shared, ...randomTokens(20, 2000, i)], { maxTokens: 2 })),
    );
    await model.dispose();
    // 256 + 8 × 20 tokens of prompts and one more of each answer.
    expect(steps.reduce((sum, step) => sum + step.rows, 0)).toBe(256 + 8 * 20 + 8);
  });

  it("gives n answers to one prompt, computed once, each as with its own seed", async () => {
    const { model, steps } = await traced({ contextLength: 512, kvCacheTokens: 4096 });
    const prompt = randomTokens(130, 2000, 4);
    const ids: number[][] = [[], [], []];
    const ends: (string | null)[] = [];
    for await (const piece of model.generate(prompt, { n: 3, temperature: 1, seed: 10, maxTokens: 6 })) {
      for (const { id } of piece.tokens) ids[piece.choice]!.push(id);
      if (piece.finishReason !== null) ends[piece.choice] = piece.finishReason;
    }
    expect(ends.length).toBe(3);
    // Two answers compute the two tokens of the prompt behind its last full block again.
    const promptRows = steps
      .flatMap(({ chunks }) => chunks)
      .reduce((sum, { start, end }) => sum + Math.max(0, Math.min(end, 130) - start), 0);
    expect(promptRows).toBe(130 + 2 * 2);
    for (const [i, answer] of ids.entries()) {
      expect((await outcome(model, prompt, { temperature: 1, seed: 10 + i, maxTokens: 6 })).ids).toEqual(answer);
    }
    await model.dispose();
  });

  it("waits for a slow consumer, and not for the others", async () => {
    const { model, steps } = await traced({ contextLength: 2048, kvCacheTokens: 4096 });
    const logitBias = endlessly(model);
    const slow = model.generate([1, 2, 3], { maxTokens: 1000, logitBias });
    await slow.next();
    const quick = await outcome(model, [4, 5, 6], { maxTokens: 700, logitBias });
    expect(quick.ids.length).toBe(700);
    const generated = steps.flatMap(({ chunks }) => chunks).filter(({ request, sample }) => request === 1 && sample);
    expect(generated.length).toBeLessThan(300);
    let tokens = 1;
    for await (const piece of slow) tokens += piece.tokens.length;
    expect(tokens).toBe(1000);
    await model.dispose();
  });

  it("gives each token once to a consumer that is so slow that its answer lost its blocks meanwhile", async () => {
    const { model } = await traced({ contextLength: 512, kvCacheTokens: 512 });
    const logitBias = endlessly(model);
    const options = { maxTokens: 400, logitBias, temperature: 1, seed: 1 };
    const alone = await outcome(model, [1, 2, 3], options);
    const slow = model.generate([1, 2, 3], { ...options, priority: 5 });
    const ids = [(await slow.next()).value!.tokens[0]!.id];
    await outcome(model, [4, 5, 6], { maxTokens: 450, logitBias });
    expect(model.statistics().preemptions).toBe(1);
    // It is computed again while its consumer still does not read, beside another.
    await outcome(model, [7, 8, 9], { maxTokens: 20, logitBias });
    for await (const piece of slow) for (const { id } of piece.tokens) ids.push(id);
    expect(ids).toEqual(alone.ids);
    await model.dispose();
  });

  it("plans a step while the one before runs, and starts it with those that go on", async () => {
    const { model, steps } = await traced({ contextLength: 512, kvCacheTokens: 4096, burstMilliseconds: 0 });
    const logitBias = endlessly(model);
    await Promise.all(
      [20, 40, 60].map((maxTokens, i) => outcome(model, randomTokens(300 + i, 2000, i), { maxTokens, logitBias })),
    );
    const later = steps.slice(1).filter((step, i) => step.planned < steps[i]!.ended);
    expect(later.length).toBeGreaterThan(steps.length - 4);
    // A stop string ends an answer when its next row is planned already.
    const before = steps.length;
    const all = await Promise.all(
      ["", "a", "e"].map((stop, i) =>
        outcome(model, [10 + i], { maxTokens: 60, logitBias, temperature: 1, seed: i, ...(stop && { stop }) }),
      ),
    );
    expect(all.map(({ reason }) => reason)).toEqual(["length", "stop", "stop"]);
    const rows = steps.slice(before).reduce((sum, step) => sum + step.rows, 0);
    expect(rows).toBe(all.reduce((sum, { ids }) => sum + ids.length, 0));
    await model.dispose();
  });

  it("lets what is urgent go first", async () => {
    const { model } = await traced({ contextLength: 256, maxSequences: 1 });
    const order: string[] = [];
    const ask = async (name: string, priority: number, seed: number) => {
      await outcome(model, randomTokens(20, 2000, seed), { maxTokens: 5, priority });
      order.push(name);
    };
    await Promise.all([ask("first", 0, 1), ask("later", 5, 2), ask("urgent", -5, 3)]);
    await model.dispose();
    expect(order.indexOf("urgent")).toBeLessThan(order.indexOf("later"));
  });

  it("leaks nothing when 10,000 requests are cancelled at any moment", async () => {
    const random = randomTokens(4000, 1000, 7);
    let next = 0;
    const draw = (limit: number) => random[next++ % random.length]! % limit;
    const ask = async (i: number) => {
      const abort = new AbortController();
      const prompt = randomTokens(1 + draw(60), 2000, i % 17);
      const stopAt = draw(8);
      let seen = 0;
      await moment(draw(20));
      for await (const piece of model.generate(prompt, { maxTokens: 6, signal: abort.signal })) {
        if (++seen === stopAt) {
          if (i % 2 === 0) break;
          abort.abort();
        }
        if (piece.finishReason !== null) expect(["length", "stop", "abort"]).toContain(piece.finishReason);
      }
    };
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    const memory = () => {
      collect();
      return process.memoryUsage();
    };
    let settled = memory();
    for (let round = 0; round < 100; round++) {
      await Promise.all(Array.from({ length: 100 }, (_, i) => ask(round * 100 + i)));
      if (round === 40) settled = memory();
      else if (round % 10 === 0) collect();
    }
    // Of 6,000 requests: a leak of 350 bytes of JavaScript's each, or of 7 kB of the process's.
    const { heapUsed, rss } = memory();
    expect(heapUsed - settled.heapUsed).toBeLessThan(2e6);
    expect(rss - settled.rss).toBeLessThan(40e6);
    // The last requests may have been cancelled in a step that is still to end.
    await expect
      .poll(() => model.statistics())
      .toMatchObject({ running: 0, waiting: 0, cache: { usedBlocks: 0, sequences: 0 } });
  });

  it("writes a prefix to a file and begins with it in another process", async () => {
    const folder = mkdtempSync(join(tmpdir(), "niwaki-prefix-"));
    const path = join(folder, "prefix");
    const prefix = randomTokens(100, 2000, 5);
    const prompt = [...prefix, ...randomTokens(9, 2000, 6)];
    const expected = await outcome(model, prompt, { maxTokens: 5, cacheSalt: "none" });
    expect(await model.savePrefix(prefix, path)).toBe(96);
    await using other = await Qwen3Model.load(demoModelPath, { contextLength: 256 });
    expect(await other.restorePrefix(path)).toBe(96);
    expect(await outcome(other, prompt, { maxTokens: 5 })).toEqual(expected);
    expect(other.statistics().cache.hitTokens).toBe(96);

    await using full = await Qwen3Model.load(demoModelPath, { contextLength: 64 });
    expect(await full.restorePrefix(path)).toBe(null);
    await using single = await Qwen3Model.load(demoModelPath, { contextLength: 256, kvType: "f32" });
    await expect(single.restorePrefix(path)).rejects.toMatchObject({ name: "PagedKvError" });
    const damaged = readFileSync(path);
    damaged[damaged.length >> 1]! ^= 1;
    writeFileSync(path, damaged);
    await using fresh = await Qwen3Model.load(demoModelPath, { contextLength: 256 });
    await expect(fresh.restorePrefix(path)).rejects.toMatchObject({ name: "PagedKvError" });
    rmSync(folder, { recursive: true });
  });

  it.each<GenerateOptions>([{ n: 0 }, { n: 1.5 }, { priority: 1001 }])("refuses the option %o", (options) => {
    const option = Object.keys(options)[0];
    expect(() => model.generate([1], options)).toThrow(
      expect.objectContaining({ code: "invalid-option", detail: expect.objectContaining({ option }) }),
    );
  });
});
