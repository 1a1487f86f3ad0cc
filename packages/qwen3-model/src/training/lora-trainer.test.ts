import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { demoModelPath } from "@niwaki/demo-model";
import { GgufFile, writeSafetensors } from "@niwaki/gguf";
import { type LoraAdapter, matrixValues, readBaseShape, readPeftAdapter } from "@niwaki/lora";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { LoraTrainer, type TrainingProgress } from "./lora-trainer.js";
import type { TrainerOptions } from "./trainer-options.js";

const data = ["red", "blue", "green", "pink", "gray"].map((color) => ({
  messages: [
    { role: "user" as const, content: `What rhymes with ${color}?` },
    { role: "assistant" as const, content: `Not ${color}!` },
  ],
}));
const options: TrainerOptions = {
  data,
  steps: 6,
  batchSize: 3,
  maxRows: 40,
  learningRate: 2e-3,
  warmupSteps: 1,
  lora: { rank: 4, alpha: 8 },
  thinking: false,
  seed: 5,
  threads: 2,
};

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "niwaki-trainer-"));
});
afterAll(() => rm(folder, { recursive: true }));

/** Bits of all A and B. */
function bits(adapter: LoraAdapter): string[] {
  return [...adapter].flatMap(({ tensor, a, b }) =>
    [a, b].map(({ data }) => `${tensor} ${Buffer.from(data).toString("base64")}`),
  );
}

async function losses(trainer: LoraTrainer, count = Number.POSITIVE_INFINITY): Promise<TrainingProgress[]> {
  const progress: TrainingProgress[] = [];
  if (count === 0) return progress;
  for await (const step of trainer.train()) {
    progress.push(step);
    if (progress.length === count) break;
  }
  return progress;
}

describe("LoraTrainer", () => {
  it("learns, the loss falls, and the result is a PEFT folder", async () => {
    await using trainer = await LoraTrainer.create(demoModelPath, { ...options, steps: 25, learningRate: 5e-3 });
    expect(trainer).toMatchObject({ steps: 25, step: 0, exampleCount: 5, parameterCount: 65_536 });
    const seen: number[] = [];
    const progress: TrainingProgress[] = [];
    for await (const step of trainer.train({ onProgress: ({ step }) => seen.push(step) })) progress.push(step);
    expect(seen).toEqual(Array.from({ length: 25 }, (_, i) => i + 1));
    expect(progress.at(-1)!.loss).toBeLessThan(progress[0]!.loss / 4);
    expect(progress.every(({ tokensPerSecond, gradientNorm }) => tokensPerSecond > 0 && gradientNorm > 0)).toBe(true);
    expect(await losses(trainer)).toEqual([]);
    await trainer.save(join(folder, "peft"));
    const read = await readPeftAdapter(join(folder, "peft"), readBaseShape(await GgufFile.open(demoModelPath)));
    expect(bits(read)).toEqual(bits(await trainer.adapter()));
    expect(read.config).toMatchObject({ rank: 4, alpha: 8 });
    for (const { b } of read) expect(matrixValues(b).some((value) => value !== 0)).toBe(true);
  });

  it("gives the same bits again, on other numbers of threads, and resumed", async () => {
    const path = join(folder, "checkpoint.safetensors");
    await using trainer = await LoraTrainer.create(demoModelPath, options);
    const first = await losses(trainer, 2);
    await trainer.saveCheckpoint(path);
    const all = [...first, ...(await losses(trainer))].map(({ loss, gradientNorm }) => [loss, gradientNorm]);
    const expected = bits(await trainer.adapter());
    expect(all).toHaveLength(6);
    const others: [Partial<TrainerOptions>, number][] = [
      [{ threads: 3 }, 0],
      [{ threads: 1 }, 0],
      [{ resume: path, threads: 1 }, 2],
    ];
    for (const [other, step] of others) {
      await using again = await LoraTrainer.create(demoModelPath, { ...options, ...other });
      expect(again.step).toBe(step);
      const rest = (await losses(again)).map(({ loss, gradientNorm }) => [loss, gradientNorm]);
      expect(rest).toEqual(all.slice(step));
      expect(bits(await again.adapter())).toEqual(expected);
    }
    await using seeded = await LoraTrainer.create(demoModelPath, { ...options, seed: 6 });
    expect(bits(await seeded.adapter())).not.toEqual(bits(await trainer.adapter()));
  });

  it("goes on after an abort as if there had been none", async () => {
    await using steady = await LoraTrainer.create(demoModelPath, options);
    await losses(steady);
    await using trainer = await LoraTrainer.create(demoModelPath, options);
    await losses(trainer, 2);
    const controller = new AbortController();
    const step = trainer.train({ signal: controller.signal }).next();
    controller.abort();
    await expect(step).rejects.toMatchObject({ code: "cancelled" });
    expect(trainer.step).toBe(2);
    await losses(trainer);
    expect(bits(await trainer.adapter())).toEqual(bits(await steady.adapter()));
  });

  it("refuses a checkpoint of another training, and files that are none", async () => {
    const path = join(folder, "other.safetensors");
    {
      await using trainer = await LoraTrainer.create(demoModelPath, options);
      await trainer.saveCheckpoint(path);
    }
    const others: [Partial<TrainerOptions>, string][] = [
      [{ data: data.slice(1) }, "other data"],
      [{ learningRate: 1 }, "other settings"],
      [{ lora: { rank: 5 } }, "other lora"],
    ];
    const resume = (from: string, other: Partial<TrainerOptions> = {}) =>
      LoraTrainer.create(demoModelPath, { ...options, ...other, resume: from });
    for (const [other, message] of others) {
      const refused = { code: "bad-checkpoint", message: expect.stringContaining(message) };
      await expect(resume(path, other)).rejects.toMatchObject(refused);
    }
    const none = join(folder, "none.safetensors");
    await writeSafetensors(none, { tensors: [] });
    await expect(resume(none)).rejects.toMatchObject({ code: "bad-checkpoint" });
    await expect(resume(demoModelPath)).rejects.toMatchObject({ name: "GgufError" });
  });

  it("takes one step at a time, and none once it is disposed", async () => {
    const trainer = await LoraTrainer.create(demoModelPath, options);
    const step = trainer.train().next();
    await expect(trainer.adapter()).rejects.toMatchObject({ code: "busy" });
    expect((await step).value).toMatchObject({ step: 1, steps: 6 });
    await trainer.dispose();
    await expect(trainer.train().next()).rejects.toMatchObject({ code: "disposed" });
    await expect(trainer.save(folder)).rejects.toMatchObject({ code: "disposed" });
  });

  it("names an option that is out of its range", async () => {
    const bad: [Partial<TrainerOptions>, string][] = [
      [{ steps: 0 }, "steps"],
      [{ batchSize: 1.5 }, "batchSize"],
      [{ learningRate: Number.NaN }, "learningRate"],
      [{ warmupSteps: 6 }, "warmupSteps"],
      [{ beta2: 1 }, "beta2"],
      [{ maxTokens: 1 }, "maxTokens"],
      [{ maxTokens: 4096 }, "maxTokens"],
      [{ seed: 0.5 }, "seed"],
      [{ promptWeight: -1 }, "promptWeight"],
      [{ maxGradientNorm: "1" as never }, "maxGradientNorm"],
    ];
    for (const [other, option] of bad) {
      await expect(LoraTrainer.create(demoModelPath, { ...options, ...other })).rejects.toMatchObject({
        code: "invalid-option",
        detail: { option },
      });
    }
  });
});
