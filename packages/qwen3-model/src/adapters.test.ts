import { rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { demoAdapterPaths, demoModelPath } from "@niwaki/demo-model";
import { GgufFile } from "@niwaki/gguf";
import {
  LoraAdapter,
  loraConfig,
  readBaseShape,
  readPeftAdapter,
  writeGgufAdapter,
  writePeftAdapter,
} from "@niwaki/lora";
import { demoAdapterAnswers, goldens, klDivergence } from "@niwaki/testing";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { AdapterChoice } from "./adapters.js";
import { type LoadOptions, Qwen3Model } from "./model.js";
import type { GenerateOptions, Prompt } from "./options.js";
import { collectLogits, sameBits } from "./test-helpers.js";

/** KL(reference || ours), mean. In f16 what the base models alone have in llama.cpp; 8 bits round the adapter itself. */
const BOUNDS = { f16: 2e-4, i8: 1e-3 };
/** Where the two best logits are closer than this on the way, another rounding may rightly choose the other. */
const NEAR_TIE = 0.05;

async function withModel<T>(path: string, options: LoadOptions, use: (model: Qwen3Model) => Promise<T>): Promise<T> {
  await using model = await Qwen3Model.load(path, { contextLength: 256, ...options });
  return await use(model);
}

async function failing(call: () => unknown): Promise<{ code?: string; message: string }> {
  try {
    await call();
  } catch (error) {
    return error as Error;
  }
  throw new Error("nothing failed");
}

describe.each(goldens().filter(({ adapters }) => adapters.length > 0))("adapters of $name", (golden) => {
  it.each(["f16", "i8"] as const)("in %s give the logits of the float64 reference", (type) =>
    withModel(golden.model, { adapters: { type, slots: 2 } }, async (model) => {
      const distance = async (logits: Float32Array, choice: AdapterChoice) =>
        klDivergence(logits, await collectLogits(model, golden.tokens, choice), golden.shape[1]).mean;
      const names = new Map<string, string>();
      for (const { path, name, scale, logits } of golden.adapters) {
        await model.adapters.load(path, { name });
        names.set(path, name);
        expect([name, await distance(logits, [{ name, scale }])]).toEqual([
          name,
          expect.toSatisfy((x) => x <= BOUNDS[type]),
        ]);
      }
      const mix = golden.mix!.of.map(([path, scale]) => ({ name: names.get(path)!, scale }));
      expect(await distance(golden.mix!.logits, mix)).toBeLessThanOrEqual(BOUNDS[type]);
    }),
  );

  it("give the same bits from a GGUF, in chunks, and from a slot that held another", () =>
    withModel(golden.model, { adapters: { slots: 1 }, chunkSize: 7 }, async (model) => {
      const { path } = golden.adapters[0]!;
      const gguf = join(tmpdir(), `niwaki-${process.pid}-${golden.name}.gguf`);
      try {
        const base = readBaseShape(await GgufFile.open(golden.model));
        await writeGgufAdapter(await readPeftAdapter(path, base), gguf);
        await model.adapters.load(gguf, { name: "gguf" });
      } finally {
        await rm(gguf, { force: true });
      }
      await model.adapters.load(path, { name: "peft" });
      await model.adapters.load(golden.adapters[1]!.path, { name: "another" });
      const expected = await withModel(golden.model, {}, async (whole) => {
        await whole.adapters.load(path, { name: "peft" });
        return await collectLogits(whole, golden.tokens, "peft");
      });
      for (const name of ["gguf", "another", "peft"]) {
        const logits = await collectLogits(model, golden.tokens, name);
        if (name !== "another") sameBits(logits, expected);
      }
    }));
});

describe("adapters of the demo model", () => {
  let model: Qwen3Model;
  beforeAll(async () => {
    model = await Qwen3Model.load(demoModelPath, { adapters: { slots: 2 } });
    for (const [name, path] of Object.entries(demoAdapterPaths)) await model.adapters.load(path, { name });
  });
  afterAll(() => model.dispose());

  const answer = async (prompt: Prompt, options: GenerateOptions) => {
    const ids: number[] = [];
    let logprobs = 0;
    for await (const { tokens } of model.generate(prompt, {
      thinking: false,
      logprobs: 0,
      maxTokens: 40,
      ...options,
    })) {
      for (const { id, logprob } of tokens) {
        ids.push(id);
        logprobs += logprob!;
      }
    }
    return { ids, logprobs };
  };
  const adapterOf = (name: string | null) => (name === null ? {} : { adapter: name });

  it("answer as the float64 reference does, all in one batch", async () => {
    const sure = demoAdapterAnswers().filter(({ minMargin }) => minMargin > NEAR_TIE);
    expect(sure.length).toBeGreaterThan(16);
    const answers = await Promise.all(
      sure.map(({ messages, adapter, outputIds }) =>
        answer(messages, { ...adapterOf(adapter), maxTokens: outputIds.length }),
      ),
    );
    expect(answers.map(({ ids }) => ids)).toEqual(sure.map(({ outputIds }) => outputIds));
  });

  it("have the same bits alone, in a batch, after a hit, and never another's cached prompt", async () => {
    const prompt = [
      { role: "user" as const, content: "Tell me about the sea, in a few words, and then about the sky." },
    ];
    const choices: GenerateOptions[] = [
      {},
      { adapter: "pirate" },
      { adapter: "robot" },
      { adapter: [{ name: "pirate", scale: 0.5 }, { name: "robot" }] },
      { adapter: [{ name: "pirate", scale: 0.75 }, { name: "robot" }] },
    ];
    const alone: Awaited<ReturnType<typeof answer>>[] = [];
    for (const choice of choices) {
      await using fresh = await Qwen3Model.load(demoModelPath, { adapters: { slots: 2 }, threads: 1 });
      for (const [name, path] of Object.entries(demoAdapterPaths)) await fresh.adapters.load(path, { name });
      const before = model;
      model = fresh;
      alone.push(await answer(prompt, choice).finally(() => (model = before)));
    }
    expect(new Set(alone.map(({ logprobs }) => logprobs)).size).toBe(choices.length);
    const together = () => Promise.all(choices.map((choice) => answer(prompt, choice)));
    const hits = model.statistics().cache.hitTokens;
    expect(await together()).toEqual(alone);
    expect(model.statistics().cache.hitTokens).toBe(hits);
    expect(await together()).toEqual(alone);
    expect(model.statistics().cache.hitTokens).toBeGreaterThan(hits);
  });

  it("take turns where slots are few, and give way to the next", () =>
    withModel(demoModelPath, { adapters: { slots: 1 } }, async (small) => {
      for (const [name, path] of Object.entries(demoAdapterPaths)) await small.adapters.load(path, { name });
      expect(small.adapters.list()).toEqual([
        { name: "pirate", parameters: 131_072, byteLength: expect.any(Number), pinned: false, slot: null, answers: 0 },
        { name: "robot", parameters: 131_072, byteLength: expect.any(Number), pinned: false, slot: null, answers: 0 },
      ]);
      const before = model;
      model = small;
      const names = ["pirate", "robot", "pirate", "robot"];
      const answers = await Promise.all(names.map((adapter) => answer([1, 2, 3], { adapter, maxTokens: 6 }))).finally(
        () => (model = before),
      );
      expect(answers[0]).toEqual(answers[2]);
      expect(answers[1]).toEqual(answers[3]);
      expect(answers[0]!.logprobs).not.toBe(answers[1]!.logprobs);
      const two = [{ name: "pirate" }, { name: "robot" }];
      expect((await failing(() => collectLogits(small, [1], two))).code).toBe("no-slots");
    }));

  it("come and go while others answer", async () => {
    const asPirate = await answer([1, 2, 3], { adapter: "pirate" });
    const running = model.generate([1, 2, 3], { adapter: "robot", maxTokens: 30 });
    await running.next();
    const info = await model.adapters.load(demoAdapterPaths.pirate, { name: "second", pinned: true });
    expect(info).toMatchObject({ name: "second", pinned: true, answers: 0 });
    expect(info.slot).not.toBeNull();
    expect(await answer([1, 2, 3], { adapter: "second" })).toEqual(asPirate);
    let unloaded = false;
    const unloading = model.adapters.unload("robot").then(() => {
      unloaded = true;
    });
    expect((await failing(() => answer([1], { adapter: "robot" }))).code).toBe("unknown-adapter");
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(unloaded).toBe(false);
    for await (const _ of running);
    await unloading;
    await model.adapters.unload("second");
    await model.adapters.load(demoAdapterPaths.robot, { name: "robot" });
    expect(model.adapters.list().map(({ name, answers }) => [name, answers])).toEqual([
      ["pirate", 0],
      ["robot", 0],
    ]);
  });

  it("end a wait for a slot with the signal", () =>
    withModel(demoModelPath, { adapters: { slots: 1 } }, async (small) => {
      for (const [name, path] of Object.entries(demoAdapterPaths)) await small.adapters.load(path, { name });
      const holding = small.generate([1, 2, 3], { adapter: "pirate", maxTokens: 50 });
      await holding.next();
      const abort = new AbortController();
      setTimeout(() => abort.abort(), 10);
      const pieces = [];
      for await (const piece of small.generate([1], { adapter: "robot", n: 2, signal: abort.signal }))
        pieces.push(piece);
      expect(pieces.map(({ finishReason }) => finishReason)).toEqual(["abort", "abort"]);
      await holding.return();
      expect(small.adapters.list().map(({ answers }) => answers)).toEqual([0, 0]);
    }));

  it("are refused with the reason", async () => {
    const code = async (call: () => unknown) => (await failing(call)).code;
    const load = (path: string, name = "new") => model.adapters.load(path, { name });
    expect(await code(() => load("/nowhere"))).toBe("unreadable");
    expect(await code(() => load(demoAdapterPaths.pirate, "pirate"))).toBe("name-taken");
    expect(await code(() => load(goldens()[0]!.adapters[0]!.path))).toMatch(/^wrong-/);
    expect(await code(() => model.adapters.unload("nobody"))).toBe("unknown-adapter");
    for (const adapter of [
      "nobody",
      [{ name: "pirate", scale: Number.NaN }],
      [{}],
      5,
      Array(17).fill({ name: "pirate" }),
    ]) {
      expect(["unknown-adapter", "invalid-option"]).toContain(
        await code(() => model.generate([1], { adapter } as GenerateOptions)),
      );
    }
    for (const adapters of [{ slots: 0 }, { maxRank: 1.5 }, { type: "f32" }]) {
      expect(await code(() => Qwen3Model.load(demoModelPath, { adapters } as LoadOptions))).toBe("invalid-option");
    }
    const folder = join(tmpdir(), `niwaki-${process.pid}-rank`);
    try {
      const base = readBaseShape(await GgufFile.open(demoModelPath));
      await writePeftAdapter(LoraAdapter.create(loraConfig({ rank: 17, targetModules: ["q_proj"] }), base, 1), folder);
      const error = await failing(() => load(folder));
      expect(error.message).toContain("17 and more for the rank of blk.0.attn_q.weight");
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
    expect(model.adapters.list().map(({ name }) => name)).toEqual(["pirate", "robot"]);
  });
});
