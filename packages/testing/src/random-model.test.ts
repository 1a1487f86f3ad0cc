import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { GgufFile, type TensorType, tensorTypes } from "@niwaki/gguf";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type RandomModelShape, shapes, tensorShapes } from "./model-shape.js";
import { randomTokens } from "./random.js";
import { writeRandomModel } from "./random-model.js";
import { ReferenceModel } from "./reference-model.js";

const tiny: RandomModelShape = {
  layers: 2,
  hidden: 128,
  heads: 4,
  kvHeads: 2,
  headDim: 64,
  ffn: 384,
  vocabulary: 301,
  tied: true,
  contextLength: 512,
  type: "Q1_0",
};

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "niwaki-random-model-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

async function write(shape: RandomModelShape, seed = 1): Promise<string> {
  const path = join(folder, "model.gguf");
  await writeRandomModel(path, shape, seed);
  return path;
}

/** Standard deviation of the logits of `count` random tokens. */
async function logitDeviation(path: string, count: number): Promise<number> {
  const model = await ReferenceModel.open(path);
  const logits = model.forward(randomTokens(count, model.vocabulary, 9));
  expect(logits).toHaveLength(count * model.vocabulary);
  expect(logits.every(Number.isFinite)).toBe(true);
  const mean = logits.reduce((sum, logit) => sum + logit, 0) / logits.length;
  return Math.sqrt(logits.reduce((sum, logit) => sum + (logit - mean) ** 2, 0) / logits.length);
}

describe("writeRandomModel", () => {
  test("writes the metadata of a Qwen3 file", async () => {
    const file = await GgufFile.open(await write({ ...tiny, yarn: { factor: 4, originalContext: 128 } }));
    expect(file.string("general.architecture")).toBe("qwen3");
    const numbers = Object.fromEntries(
      [...file.metadata].filter(([key, value]) => key.startsWith("qwen3.") && typeof value === "number"),
    );
    expect(numbers).toEqual({
      "qwen3.block_count": 2,
      "qwen3.context_length": 512,
      "qwen3.embedding_length": 128,
      "qwen3.feed_forward_length": 384,
      "qwen3.attention.head_count": 4,
      "qwen3.attention.head_count_kv": 2,
      "qwen3.attention.key_length": 64,
      "qwen3.attention.value_length": 64,
      "qwen3.attention.layer_norm_rms_epsilon": Math.fround(1e-6),
      "qwen3.rope.freq_base": 1e6,
      "qwen3.rope.scaling.factor": 4,
      "qwen3.rope.scaling.original_context_length": 128,
    });
    expect(file.string("qwen3.rope.scaling.type")).toBe("yarn");
    expect(file.string("tokenizer.ggml.model")).toBe("gpt2");
    expect(file.strings("tokenizer.ggml.tokens")).toHaveLength(301);
    expect(file.numbers("tokenizer.ggml.token_type")).toHaveLength(301);
    expect(file.strings("tokenizer.ggml.merges")).toHaveLength(301 - 259);
    expect(file.number("tokenizer.ggml.eos_token_id")).toBe(300);
    expect(file.boolean("tokenizer.ggml.add_bos_token")).toBe(false);
    expect(file.string("tokenizer.chat_template")).toContain("<|im_start|>");
  });

  test.each(Object.keys(tensorTypes) as TensorType[])("a %s model runs, with logits of a sane size", async (type) => {
    const path = await write({ ...tiny, type });
    const file = await GgufFile.open(path);
    for (const [name, tensor] of file.tensors) expect(tensor.type, name).toBe(name.includes("norm") ? "F32" : type);
    const deviation = await logitDeviation(path, 12);
    expect(deviation).toBeGreaterThan(1);
    expect(deviation).toBeLessThan(4);
  });

  test("the type may differ from tensor to tensor, and the LM head may be its own", async () => {
    const type = (name: string): TensorType =>
      name.includes("ffn") ? "Q8_0" : name === "output.weight" ? "F16" : "Q2_0";
    const path = await write({ ...tiny, tied: false, linear: { factor: 2 }, type });
    const file = await GgufFile.open(path);
    expect(file.tensor("output.weight").type).toBe("F16");
    expect(file.tensor("output.weight").dims).toEqual([128, 301]);
    expect(file.tensor("blk.1.ffn_down.weight").type).toBe("Q8_0");
    expect(file.tensor("blk.1.ffn_down.weight").dims).toEqual([384, 128]);
    expect(file.tensor("blk.0.attn_q.weight").type).toBe("Q2_0");
    expect(file.tensor("blk.0.attn_q.weight").dims).toEqual([128, 256]);
    expect(file.tensor("blk.0.attn_q_norm.weight").dims).toEqual([64]);
    expect(await logitDeviation(path, 12)).toBeLessThan(4);
  });

  test("logits stay sane through 36 layers", async () => {
    const deviation = await logitDeviation(await write({ ...tiny, layers: 36 }), 16);
    expect(deviation).toBeGreaterThan(1);
    expect(deviation).toBeLessThan(4);
  });

  test("the same seed gives the same bytes, another seed others", async () => {
    const first = readFileSync(await write(tiny, 3));
    expect(readFileSync(await write(tiny, 3)).equals(first)).toBe(true);
    expect(readFileSync(await write(tiny, 4)).equals(first)).toBe(false);
  });

  test("refuses rows that are no whole blocks, and two kinds of RoPE scaling", async () => {
    await expect(write({ ...tiny, ffn: 320 })).rejects.toThrow(
      "blk.0.ffn_down.weight: rows of 320 weights are no whole number of Q1_0 blocks of 128",
    );
    await expect(write({ ...tiny, linear: { factor: 2 }, yarn: { factor: 2, originalContext: 128 } })).rejects.toThrow(
      "linear or yarn",
    );
  });
});

test("the Bonsai shapes have the published numbers of weights", () => {
  const matrixWeights = (shape: RandomModelShape) =>
    tensorShapes(shape).reduce((sum, t) => sum + ("length" in t ? 0 : t.inputs * t.outputs), 0);
  // 8B in Q1_0: 18 bytes per 128 weights make the 1.15 GB of the published file.
  expect((matrixWeights(shapes["8b"]) / 128) * 18).toBe(1_151_471_232);
  expect(matrixWeights(shapes["4b"]) / 1e9).toBeCloseTo(4.02, 2);
  expect(matrixWeights(shapes["1.7b"]) / 1e9).toBeCloseTo(1.72, 2);
});
