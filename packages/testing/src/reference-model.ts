import { dequantize, GgufFile } from "@niwaki/gguf";
import { dot, Matrix } from "./matrix.js";
import { type Project, projection, type ReferenceAdapter } from "./reference-adapter.js";
import { type ReferenceConfig, readConfig } from "./reference-config.js";
import { Rope } from "./rope.js";

interface Layer {
  attnNorm: Float64Array;
  q: Matrix;
  k: Matrix;
  v: Matrix;
  qNorm: Float64Array;
  kNorm: Float64Array;
  attnOutput: Matrix;
  ffnNorm: Float64Array;
  gate: Matrix;
  up: Matrix;
  down: Matrix;
}

/**
 * A Qwen3 forward pass in float64 that dequantizes weights exactly and rounds nothing else: what every faster
 * implementation is measured against. It keeps the file's bytes and expands a few rows of one matrix at a time.
 */
export class ReferenceModel {
  readonly vocabulary: number;
  readonly #config: ReferenceConfig;
  readonly #rope: Rope;
  readonly #embedding: Matrix;
  readonly #layers: readonly Layer[];
  readonly #outputNorm: Float64Array;
  readonly #lmHead: Matrix;

  private constructor(
    config: ReferenceConfig,
    embedding: Matrix,
    layers: readonly Layer[],
    outputNorm: Float64Array,
    lmHead: Matrix,
  ) {
    this.vocabulary = config.vocabulary;
    this.#config = config;
    this.#rope = new Rope(config.headDim, config.ropeBase, config.ropeScaling);
    this.#embedding = embedding;
    this.#layers = layers;
    this.#outputNorm = outputNorm;
    this.#lmHead = lmHead;
  }

  /**
   * Reads every weight of a Qwen3 GGUF.
   *
   * @throws GgufError for a broken file or a missing key or tensor, Error for another architecture or shape.
   */
  static async open(path: string): Promise<ReferenceModel> {
    const file = await GgufFile.open(path);
    const config = readConfig(file);
    const { hidden, vocabulary } = config;
    const embedding = await Matrix.read(file, "token_embd.weight", hidden, vocabulary);
    const layers: Layer[] = [];
    for (let index = 0; index < config.layers; index++) layers.push(await readLayer(file, index, config));
    const outputNorm = await readVector(file, "output_norm.weight", hidden);
    const tied = !file.tensors.has("output.weight");
    const lmHead = tied ? embedding : await Matrix.read(file, "output.weight", hidden, vocabulary);
    return new ReferenceModel(config, embedding, layers, outputNorm, lmHead);
  }

  /**
   * Logits of every position of a sequence that starts at position 0: [tokens, vocabulary].
   *
   * @param adapters LoRA adapters that are applied together, each times its weight.
   * @throws RangeError when a token id is not in the vocabulary, or an adapter's matrix does not fit the model's.
   */
  forward(tokens: readonly number[], adapters: readonly ReferenceAdapter[] = []): Float64Array {
    const { epsilon } = this.#config;
    const project = projection(adapters);
    const hidden = this.#embed(tokens);
    for (const layer of this.#layers) {
      add(hidden, this.#attention(layer, rmsNorm(hidden, layer.attnNorm, epsilon), project));
      add(hidden, feedForward(layer, rmsNorm(hidden, layer.ffnNorm, epsilon), project));
    }
    return this.#lmHead.multiply(rmsNorm(hidden, this.#outputNorm, epsilon));
  }

  #embed(tokens: readonly number[]): Float64Array {
    const { hidden, vocabulary } = this.#config;
    const rows = new Float64Array(tokens.length * hidden);
    for (const [position, token] of tokens.entries()) {
      if (!Number.isInteger(token) || token < 0 || token >= vocabulary) {
        throw new RangeError(`token ${token} at position ${position} is not in [0, ${vocabulary})`);
      }
      rows.set(this.#embedding.rows(token, 1), position * hidden);
    }
    return rows;
  }

  #attention(layer: Layer, x: Float64Array, project: Project): Float64Array {
    const { heads, kvHeads, headDim, epsilon } = this.#config;
    const q = rmsNorm(project(layer.q, x), layer.qNorm, epsilon); // over each head: the norm's length is headDim
    const k = rmsNorm(project(layer.k, x), layer.kNorm, epsilon);
    const v = project(layer.v, x);
    this.#rope.apply(q, heads);
    this.#rope.apply(k, kvHeads);
    return project(layer.attnOutput, causalAttention(q, k, v, heads, kvHeads, headDim));
  }
}

/** softmax(q kᵀ / √headDim) v for q [tokens, heads * headDim] and k, v [tokens, kvHeads * headDim]. */
function causalAttention(
  q: Float64Array,
  k: Float64Array,
  v: Float64Array,
  heads: number,
  kvHeads: number,
  headDim: number,
): Float64Array {
  const out = new Float64Array(q.length);
  const tokens = q.length / (heads * headDim);
  const scores = new Float64Array(tokens);
  for (let head = 0; head < heads; head++) {
    const kvHead = Math.floor(head / (heads / kvHeads));
    const kvAt = (position: number) => (position * kvHeads + kvHead) * headDim;
    for (let position = 0; position < tokens; position++) {
      const at = (position * heads + head) * headDim;
      let max = Number.NEGATIVE_INFINITY;
      for (let past = 0; past <= position; past++) {
        scores[past] = dot(q, at, k, kvAt(past), headDim) / Math.sqrt(headDim);
        max = Math.max(max, scores[past]!);
      }
      let total = 0;
      for (let past = 0; past <= position; past++) {
        scores[past] = Math.exp(scores[past]! - max);
        total += scores[past]!;
      }
      for (let past = 0; past <= position; past++) {
        const weight = scores[past]! / total;
        for (let i = 0; i < headDim; i++) out[at + i]! += weight * v[kvAt(past) + i]!;
      }
    }
  }
  return out;
}

/** down(silu(gate(x)) * up(x)), SwiGLU. */
function feedForward(layer: Layer, x: Float64Array, project: Project): Float64Array {
  const gate = project(layer.gate, x);
  const up = project(layer.up, x);
  return project(
    layer.down,
    gate.map((g, i) => (g / (1 + Math.exp(-g))) * up[i]!),
  );
}

/** x / rms(x) * weight over each run of weight.length values (Zhang and Sennrich, 2019). */
function rmsNorm(x: Float64Array, weight: Float64Array, epsilon: number): Float64Array {
  const length = weight.length;
  const out = new Float64Array(x.length);
  for (let from = 0; from < x.length; from += length) {
    const scale = 1 / Math.sqrt(dot(x, from, x, from, length) / length + epsilon);
    for (let i = 0; i < length; i++) out[from + i] = x[from + i]! * scale * weight[i]!;
  }
  return out;
}

function add(sum: Float64Array, x: Float64Array): void {
  for (let i = 0; i < sum.length; i++) sum[i]! += x[i]!;
}

async function readLayer(file: GgufFile, index: number, config: ReferenceConfig): Promise<Layer> {
  const { hidden, heads, kvHeads, headDim, ffn } = config;
  const name = (part: string) => `blk.${index}.${part}.weight`;
  return {
    attnNorm: await readVector(file, name("attn_norm"), hidden),
    q: await Matrix.read(file, name("attn_q"), hidden, heads * headDim),
    k: await Matrix.read(file, name("attn_k"), hidden, kvHeads * headDim),
    v: await Matrix.read(file, name("attn_v"), hidden, kvHeads * headDim),
    qNorm: await readVector(file, name("attn_q_norm"), headDim),
    kNorm: await readVector(file, name("attn_k_norm"), headDim),
    attnOutput: await Matrix.read(file, name("attn_output"), heads * headDim, hidden),
    ffnNorm: await readVector(file, name("ffn_norm"), hidden),
    gate: await Matrix.read(file, name("ffn_gate"), hidden, ffn),
    up: await Matrix.read(file, name("ffn_up"), hidden, ffn),
    down: await Matrix.read(file, name("ffn_down"), ffn, hidden),
  };
}

async function readVector(file: GgufFile, name: string, length: number): Promise<Float64Array> {
  const tensor = file.tensor(name);
  if (tensor.type !== "F32" || tensor.dims.length !== 1 || tensor.dims[0] !== length) {
    throw new Error(`${file.path}: ${name} is ${tensor.typeName} [${tensor.dims}], expected F32 [${length}]`);
  }
  return Float64Array.from(dequantize("F32", await file.readTensor(name), length));
}
