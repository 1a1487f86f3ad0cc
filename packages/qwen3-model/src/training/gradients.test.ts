import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { GgufFile, type TensorType } from "@niwaki/gguf";
import type { TrainingBatch } from "@niwaki/kernels-native";
import { matrixValues } from "@niwaki/lora";
import { type RandomModelShape, ReferenceModel, randomTokens, writeRandomModel } from "@niwaki/testing";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { microBatches } from "./batch.js";
import type { TrainingExample } from "./chat-data.js";
import { randomAdapter, trainingPlan } from "./test-training.js";

const tiny = { layers: 2, hidden: 128, heads: 4, kvHeads: 2, headDim: 32, ffn: 256, vocabulary: 300 };
const yarn = { factor: 4, originalContext: 64 };
const shapes: Record<string, RandomModelShape> = {
  "Q1_0, tied": { ...tiny, tied: true, contextLength: 64, type: "Q1_0" },
  "Q2_0, own LM head, YaRN": { ...tiny, tied: false, contextLength: 256, ropeBase: 1e4, yarn, type: "Q2_0" },
  "mixed types": {
    ...tiny,
    tied: true,
    contextLength: 64,
    type: (name): TensorType =>
      name.includes("attn_q") ? "F16" : name.includes("attn") ? "Q8_0" : name.includes("down") ? "Q4_0" : "Q1_0",
  },
};

const examples: TrainingExample[] = [
  { ids: Int32Array.from(randomTokens(9, 300, 1)), promptLength: 4 },
  { ids: Int32Array.from(randomTokens(6, 300, 2)), promptLength: 3 },
];

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "niwaki-gradients-"));
});
afterAll(() => rm(folder, { recursive: true }));

/** The loss that the batch stands for, from the float64 logits of the reference. */
function referenceLoss(batch: TrainingBatch, forward: (tokens: number[]) => Float64Array, vocabulary: number): number {
  let loss = 0;
  let first = 0;
  for (const rows of batch.sequences) {
    const logits = forward(Array.from(batch.tokens.subarray(first, first + rows)));
    for (const [i, row] of batch.outputs.entries()) {
      if (row < first || row >= first + rows) continue;
      const line = logits.subarray((row - first) * vocabulary, (row - first + 1) * vocabulary);
      const total = line.reduce((sum, logit) => sum + Math.exp(logit), 0);
      loss += batch.weights[i]! * (Math.log(total) - line[batch.targets[i]!]!);
    }
    first += rows;
  }
  return loss;
}

describe.each(Object.entries(shapes))("gradients of %s", (_, shape) => {
  it("are the finite differences of the float64 reference, for A and B of every module", async () => {
    const path = join(folder, "model.gguf");
    await writeRandomModel(path, shape, 7);
    const reference = await ReferenceModel.open(path);
    const adapter = randomAdapter(await GgufFile.open(path), { rank: 3, alpha: 5, rankPattern: { v_proj: 18 } });
    await using training = await trainingPlan(path, adapter, 16);
    const [batch] = microBatches(examples, 16, 0.25);

    const targets = adapter.targets.map((target) => ({
      ...target,
      a: Float64Array.from(matrixValues(target.a)),
      b: Float64Array.from(matrixValues(target.b)),
    }));
    const factors = targets.flatMap(({ tensor, a, b }) => [
      { name: `${tensor} A`, values: a },
      { name: `${tensor} B`, values: b },
    ]);
    const parameters = new Float32Array(adapter.parameterCount);
    let at = 0;
    for (const { values } of factors) {
      parameters.set(values, at);
      at += values.length;
    }
    await training.plan.write("parameters", parameters);
    const loss = await training.plan.accumulate(batch!);
    const gradients = await training.plan.read("gradients");

    const lossNow = () => referenceLoss(batch!, (tokens) => reference.forward(tokens, [{ targets }]), shape.vocabulary);
    expect(Math.abs(loss / lossNow() - 1)).toBeLessThan(1e-5);
    expect(factors).toHaveLength(2 * 7 * shape.layers);
    at = 0;
    for (const [index, { name, values }] of factors.entries()) {
      const gradient = gradients.subarray(at, at + values.length);
      at += values.length;
      const typical = Math.sqrt(gradient.reduce((sum, g) => sum + g * g, 0) / gradient.length);
      expect(typical, name).toBeGreaterThan(0);
      for (const place of randomTokens(2, values.length, index)) {
        const h = 1e-4;
        const value = values[place]!;
        values[place] = value + h;
        const above = lossNow();
        values[place] = value - h;
        const below = lossNow();
        values[place] = value;
        const difference = (above - below) / (2 * h);
        const error = Math.abs(gradient[place]! - difference) / Math.max(Math.abs(difference), typical);
        expect(error, `${name} ${place}: ${gradient[place]} and ${difference}`).toBeLessThan(1e-3);
      }
    }
  });
});
