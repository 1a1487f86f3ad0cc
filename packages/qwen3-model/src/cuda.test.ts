import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { demoAdapterPaths, demoModelPath } from "@niwaki/demo-model";
import { Device, gpus } from "@niwaki/kernels-native";
import { demoAdapterAnswers, demoAnswers, goldens, klDivergence, randomTokens } from "@niwaki/testing";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type LoadOptions, Qwen3Model } from "./model.js";
import type { GenerateOptions, Prompt } from "./options.js";
import { allLogits, collectLogits, sameBits } from "./test-helpers.js";

// These run on the emulator, or on a GPU with the kernels that NIWAKI_CUDA_LIBRARY names.
const emulated = fileURLToPath(new URL("../../kernels-native/build/Release/libniwaki-cuda.so", import.meta.url));
const library = process.env.NIWAKI_CUDA_LIBRARY || emulated;

/** See golden.test.ts, answers.test.ts and adapters.test.ts. */
const BOUND_WITHOUT_PEER = 5e-5;
const NEAR_TIE = 0.05;
const ADAPTER_BOUND = 2e-4;

const small = { backend: "cuda", contextLength: 256, chunkSize: 32 } as const;

interface Answer {
  ids: number[];
  logprobs: number[];
  text: string;
  reason: string | null;
}

async function answer(model: Qwen3Model, prompt: Prompt, options: GenerateOptions = {}): Promise<Answer> {
  const all: Answer = { ids: [], logprobs: [], text: "", reason: null };
  for await (const piece of model.generate(prompt, { thinking: false, logprobs: 0, ...options })) {
    for (const { id, logprob } of piece.tokens) {
      all.ids.push(id);
      all.logprobs.push(logprob!);
    }
    all.text += piece.text;
    all.reason = piece.finishReason;
  }
  return all;
}

// There are CUDA kernels for one platform; there, what is missing is a failure.
describe.runIf(`${process.platform}-${process.arch}` === "linux-x64")("on CUDA", () => {
  beforeAll(() => {
    if (!existsSync(library)) {
      throw new Error(`${library} is not there: pnpm -C packages/kernels-native build:native && … build:emulated`);
    }
    vi.stubEnv("NIWAKI_CUDA_LIBRARY", library);
  });
  afterAll(() => {
    vi.unstubAllEnvs();
  });

  it("a model knows what it runs on", async () => {
    const { gpus: found, reason } = gpus();
    expect(reason).toBeUndefined();
    await using model = await Qwen3Model.load(demoModelPath, { ...small, backend: "auto", gpu: 0 });
    expect(model.device).toEqual({ backend: "cuda", tier: "cuda", name: found[0]!.name, threads: expect.any(Number) });
    expect(Object.values(model.memory()).every((bytes) => bytes > 0)).toBe(true);
    await expect(Qwen3Model.load(demoModelPath, { ...small, gpu: found.length })).rejects.toMatchObject({
      name: "KernelError",
      code: "unsupported",
    });
  });

  describe.each(goldens())("$name", (golden) => {
    it.each(["f16", "q8"] as const)("is as close to the float64 reference as on a CPU, in %s", async (kvType) => {
      const logits = await allLogits(golden.model, golden.tokens, { ...small, kvType });
      const { mean } = klDivergence(golden.logits, logits, golden.shape[1]);
      expect(mean).toBeLessThanOrEqual(golden.llamaCppMeanKl ?? BOUND_WITHOUT_PEER);
      if (kvType === "q8")
        sameBits(await allLogits(golden.model, golden.tokens, { ...small, kvType, chunkSize: 5 }), logits);
    });
  });

  it.each(goldens().flatMap(({ adapters, ...golden }) => adapters.map((adapter) => ({ ...golden, adapter }))))(
    "$name with the adapter $adapter.name gives the logits of the float64 reference",
    async ({ model: path, tokens, shape, adapter: { path: folder, name, scale, logits } }) => {
      await using model = await Qwen3Model.load(path, { ...small, adapters: { slots: 1 } });
      await model.adapters.load(folder, { name });
      const { mean } = klDivergence(logits, await collectLogits(model, tokens, [{ name, scale }]), shape[1]);
      expect(mean).toBeLessThanOrEqual(ADAPTER_BOUND);
    },
  );

  describe("the demo model", () => {
    let model: Qwen3Model;
    const load = (options: LoadOptions = {}) =>
      Qwen3Model.load(demoModelPath, { ...small, kvCacheTokens: 2048, adapters: { slots: 2 }, ...options });
    beforeAll(async () => {
      model = await load();
      for (const [name, path] of Object.entries(demoAdapterPaths)) await model.adapters.load(path, { name });
    });
    afterAll(() => model?.dispose());

    it("answers as the float64 reference does, alone and all at once", async () => {
      const sure = demoAnswers().filter(({ minMargin }, i) => minMargin > NEAR_TIE && i % 4 === 0);
      expect(sure.length).toBeGreaterThan(8);
      const ask = ({ prompt, outputIds }: (typeof sure)[number], cacheSalt: string) =>
        answer(model, prompt, { maxTokens: outputIds.length + 8, cacheSalt });
      const together = await Promise.all(sure.map((one) => ask(one, "together")));
      expect(together.map(({ ids }) => ids)).toEqual(sure.map(({ outputIds }) => outputIds));
      for (const [i, one] of sure.slice(0, 4).entries()) expect(await ask(one, "alone")).toEqual(together[i]);
    });

    it("answers with adapters, each its own, in one batch", async () => {
      const sure = demoAdapterAnswers().filter(({ minMargin }, i) => minMargin > NEAR_TIE && i % 3 === 0);
      expect(new Set(sure.map(({ adapter }) => adapter)).size).toBe(3);
      const answers = await Promise.all(
        sure.map(({ messages, adapter, outputIds }) =>
          answer(model, messages, { maxTokens: outputIds.length, ...(adapter === null ? {} : { adapter }) }),
        ),
      );
      expect(answers.map(({ ids }) => ids)).toEqual(sure.map(({ outputIds }) => outputIds));
    });

    it("has the same bits after a hit, with a mix of adapters", async () => {
      const adapter = [{ name: "pirate", scale: 0.5 }, { name: "robot" }];
      const ask = () => answer(model, randomTokens(70, 2000, 1), { maxTokens: 4, adapter });
      const before = model.statistics().cache.hitTokens;
      const first = await ask();
      expect(model.statistics().cache.hitTokens).toBe(before);
      expect(await ask()).toEqual(first);
      expect(model.statistics().cache.hitTokens).toBe(before + 64);
    });

    it("draws what a CPU draws from the same seed, whatever else runs", async () => {
      const drawn = { temperature: 1.2, topK: 40, topP: 0.95, minP: 0.01, repetitionPenalty: 1.1, maxTokens: 12 };
      const ask = (on: Qwen3Model, seed: number) => answer(on, "Once upon a time", { ...drawn, seed });
      const alone = await ask(model, 5);
      const [together, other] = await Promise.all([5, 6, 7].map((seed) => ask(model, seed)));
      expect(together).toEqual(alone);
      expect(other!.ids).not.toEqual(alone.ids);
      await using cpu = await load({ backend: "cpu" });
      const expected = await ask(cpu, 5);
      expect(alone.ids).toEqual(expected.ids);
      for (const [i, logprob] of alone.logprobs.entries()) expect(logprob).toBeCloseTo(expected.logprobs[i]!, 2);
    });

    it("gives log-probabilities that fit the logits", async () => {
      const prompt = model.promptIds("Once upon a time there was a");
      const pieces = [];
      for await (const piece of model.generate(prompt, { maxTokens: 1, logprobs: 3 })) pieces.push(piece);
      const row = (await collectLogits(model, prompt)).slice(-model.config.vocabulary);
      const best = [...row.keys()].sort((a, b) => row[b]! - row[a]! || a - b).slice(0, 3);
      const max = row[best[0]!]!;
      const total = row.reduce((sum, logit) => sum + Math.exp(logit - max), 0);
      const token = pieces[0]!.tokens[0]!;
      expect(token.top!.map(({ id }) => id)).toEqual(best);
      for (const { id, logprob } of token.top!) expect(logprob).toBeCloseTo(row[id]! - max - Math.log(total), 4);
    });

    it("takes a token that is not banned, and ends before a stop string", async () => {
      const prompt = [{ role: "user" as const, content: "What is 7 + 12?" }];
      const { ids, text } = await answer(model, prompt, { maxTokens: 6 });
      const logitBias = new Map([[ids[0]!, Number.NEGATIVE_INFINITY]]);
      expect((await answer(model, prompt, { maxTokens: 2, logitBias })).ids[0]).not.toBe(ids[0]);
      const stop = text.slice(3, 6);
      expect(await answer(model, prompt, { stop })).toMatchObject({ text: text.slice(0, 3), reason: "stop" });
    });

    it("takes tokens in bursts", async () => {
      const steps: number[] = [];
      await using bursting = await load({ burstMilliseconds: 2000, onStep: (step) => steps.push(step.steps) });
      const options = { maxTokens: 20, temperature: 1, seed: 3 };
      expect(await answer(bursting, [1, 2, 3], options)).toEqual(await answer(model, [1, 2, 3], options));
      expect(Math.max(...steps)).toBeGreaterThan(4);
    });

    it("gives the same answers when a small cache takes blocks from running ones", async () => {
      await using tight = await load({ contextLength: 96, kvCacheTokens: 96, chunkSize: 16 });
      const ask = (on: Qwen3Model, i: number) =>
        answer(on, randomTokens(20 + 9 * i, 2000, i), { maxTokens: 14, temperature: 1, seed: i, cacheSalt: `${i}` });
      const together = await Promise.all([0, 1, 2, 3].map((i) => ask(tight, i)));
      expect(tight.statistics().preemptions).toBeGreaterThan(0);
      expect(together).toEqual(await Promise.all([0, 1, 2, 3].map((i) => ask(model, i))));
    });

    it("is cancelled in the middle of a prompt, and goes on with others", async () => {
      const abort = new AbortController();
      setTimeout(() => abort.abort(), 5);
      const long = randomTokens(250, 2000, 2);
      expect(await answer(model, long, { signal: abort.signal, maxTokens: 1 })).toMatchObject({
        ids: [],
        reason: "abort",
      });
      for await (const piece of model.generate([1, 2, 3])) if (piece.tokens.length > 0) break;
      expect((await answer(model, [1, 2, 3], { maxTokens: 3 })).ids.length).toBe(3);
      expect(model.statistics().cache).toMatchObject({ usedBlocks: 0, sequences: 0 });
    });

    it("is disposed of while it answers", async () => {
      const leaving = await load({ burstMilliseconds: 0 });
      const running = leaving.generate(randomTokens(20, 2000, 3), { temperature: 1, seed: 3 });
      await running.next();
      const ended = expect(running.next().then(() => running.next())).rejects.toMatchObject({ code: "disposed" });
      await leaving.dispose();
      await ended;
    });

    it("saves a prefix for CUDA, which a CPU refuses", async () => {
      const folder = mkdtempSync(join(tmpdir(), "niwaki-cuda-"));
      try {
        const path = join(folder, "prefix");
        const prefix = randomTokens(40, 2000, 4);
        expect(await model.savePrefix(prefix, path)).toBe(32);
        await using other = await load();
        expect(await other.restorePrefix(path)).toBe(32);
        expect(await answer(other, prefix, { maxTokens: 3 })).toEqual(await answer(model, prefix, { maxTokens: 3 }));
        expect(other.statistics().cache.hitTokens).toBe(32);
        await using cpu = await load({ backend: "cpu" });
        await expect(cpu.restorePrefix(path)).rejects.toMatchObject({ name: "PagedKvError" });
      } finally {
        rmSync(folder, { recursive: true });
      }
    });
  });

  it("what there is on a CPU only is refused with the reason", async () => {
    await expect(Qwen3Model.load(demoModelPath, { ...small, kvType: "f32" })).rejects.toMatchObject({
      name: "KernelError",
      code: "unsupported",
    });
    await using device = Device.open({ backend: "cuda" });
    const rope = { headDim: 64, base: 1e6 };
    const limits = { maxRows: 16, maxOutputs: 16, maxSequence: 16, vocabulary: 2048, rope };
    expect(() => device.encodeTraining(limits, () => expect.unreachable())).toThrow(
      expect.objectContaining({ code: "unsupported" }),
    );
  });
});
