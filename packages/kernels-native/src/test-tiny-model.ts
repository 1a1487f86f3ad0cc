import type { Device } from "./device.js";
import type { KvCache, KvType } from "./kv-cache.js";
import type { Matrix } from "./matrix.js";
import type { Plan } from "./plan.js";
import type { SampleSpec, StepResult } from "./step.js";
import { random } from "./test-random.js";
import { f32Tensor, randomTensor, type Tensor } from "./test-tensors.js";
import type { WeightType } from "./weight-type.js";

export const shape = {
  vocabulary: 100,
  hidden: 128,
  heads: 4,
  kvHeads: 2,
  headDim: 32,
  ffn: 256,
  layers: 2,
  blockSize: 16,
  blocks: 16,
  eps: 1e-6,
  base: 10000,
  maxRows: 64,
};

interface TinyLayer {
  attnNorm: Tensor;
  q: Tensor;
  k: Tensor;
  v: Tensor;
  qNorm: Tensor;
  kNorm: Tensor;
  attnOutput: Tensor;
  ffnNorm: Tensor;
  gate: Tensor;
  up: Tensor;
  down: Tensor;
}

/** The weights of a transformer of two layers, small enough to compute in plain TypeScript. */
export interface TinyWeights {
  embedding: Tensor;
  layers: TinyLayer[];
  outputNorm: Tensor;
  head: Tensor;
}

export function tinyWeights(type: WeightType): TinyWeights {
  const { vocabulary, hidden, heads, kvHeads, headDim, ffn, layers } = shape;
  let seed = 1;
  const matrix = (name: string, rows: number, columns: number) => randomTensor(name, type, rows, columns, seed++);
  const norm = (name: string, length: number) => {
    const next = random(seed++);
    return f32Tensor(
      name,
      1,
      length,
      Float32Array.from({ length }, () => 0.5 + next()),
    );
  };
  return {
    embedding: matrix("token_embd", vocabulary, hidden),
    layers: Array.from({ length: layers }, (_, i) => ({
      attnNorm: norm(`blk.${i}.attn_norm`, hidden),
      q: matrix(`blk.${i}.attn_q`, heads * headDim, hidden),
      k: matrix(`blk.${i}.attn_k`, kvHeads * headDim, hidden),
      v: matrix(`blk.${i}.attn_v`, kvHeads * headDim, hidden),
      qNorm: norm(`blk.${i}.attn_q_norm`, headDim),
      kNorm: norm(`blk.${i}.attn_k_norm`, headDim),
      attnOutput: matrix(`blk.${i}.attn_output`, hidden, heads * headDim),
      ffnNorm: norm(`blk.${i}.ffn_norm`, hidden),
      gate: matrix(`blk.${i}.ffn_gate`, ffn, hidden),
      up: matrix(`blk.${i}.ffn_up`, ffn, hidden),
      down: matrix(`blk.${i}.ffn_down`, hidden, ffn),
    })),
    outputNorm: norm("output_norm", hidden),
    head: matrix("output", vocabulary, hidden),
  };
}

/** The tiny transformer, on a device. */
export class TinyModel implements Disposable {
  private constructor(
    readonly plan: Plan,
    readonly kv: KvCache,
    readonly matrices: Matrix[],
  ) {}

  static async load(device: Device, weights: TinyWeights, kvType: KvType = "f32"): Promise<TinyModel> {
    const matrices: Matrix[] = [];
    const load = async (...sources: Tensor[]) => {
      const matrix = await device.loadMatrix(sources);
      matrices.push(matrix);
      return matrix;
    };
    const embedding = await load(weights.embedding);
    const head = await load(weights.head);
    const outputNorm = device.loadVector(weights.outputNorm);
    const layers = await Promise.all(
      weights.layers.map(async (layer) => ({
        attnNorm: device.loadVector(layer.attnNorm),
        qkv: await load(layer.q, layer.k, layer.v),
        qNorm: device.loadVector(layer.qNorm),
        kNorm: device.loadVector(layer.kNorm),
        attnOutput: await load(layer.attnOutput),
        ffnNorm: device.loadVector(layer.ffnNorm),
        gateUp: await load(layer.gate, layer.up),
        down: await load(layer.down),
      })),
    );
    const { vocabulary, hidden, heads, kvHeads, headDim, ffn, blockSize, blocks, eps, base, maxRows } = shape;
    const kv = device.createKvCache({ layers: shape.layers, kvHeads, headDim, blockSize, blocks, type: kvType });
    const plan = device.encode({ maxRows, maxOutputs: maxRows, vocabulary, blockSize }, (e) => {
      const x = e.buffer(hidden);
      const normed = e.buffer(hidden);
      const qkv = e.qkvBuffer(heads, kvHeads, headDim);
      const attention = e.buffer(heads * headDim);
      const inner = e.buffer(ffn);
      e.label("token_embd");
      e.embed(embedding, x);
      const rope = e.ropeTable({ headDim, base });
      layers.forEach((layer, i) => {
        e.label(`blk.${i}`);
        e.rmsNorm(x, layer.attnNorm, normed, eps);
        e.linear(normed, layer.qkv, qkv);
        e.qkNormRope(qkv, layer.qNorm, layer.kNorm, rope, eps);
        e.kvStore(qkv, kv.layer(i));
        e.pagedAttention(qkv, kv.layer(i), attention);
        e.linear(attention, layer.attnOutput, x, { accumulate: true });
        e.rmsNorm(x, layer.ffnNorm, normed, eps);
        e.linear(normed, layer.gateUp, inner, { activation: "swiglu" });
        e.linear(inner, layer.down, x, { accumulate: true });
      });
      e.label("output");
      const last = e.outputBuffer(hidden);
      const lastNormed = e.outputBuffer(hidden);
      const logits = e.outputBuffer(vocabulary);
      e.selectOutputs(x, last);
      e.rmsNorm(last, outputNorm, lastNormed, eps);
      e.linear(lastNormed, head, logits);
      return logits;
    });
    return new TinyModel(plan, kv, matrices);
  }

  /** The next rows of one sequence; all of them give logits. Samples are of the last row. */
  step(tokens: number[], past: number, options: { blocks?: number[]; sample?: Omit<SampleSpec, "output"> } = {}) {
    const { blocks = [3, 1, 4, 7], sample } = options;
    return this.plan.run({
      tokens: Int32Array.from(tokens),
      sequences: [
        { rowCount: tokens.length, contextLength: past + tokens.length, blockTable: Int32Array.from(blocks) },
      ],
      outputs: Int32Array.from(tokens.keys()),
      samples: sample === undefined ? [] : [{ output: tokens.length - 1, ...sample }],
      logits: true,
    }) as Promise<StepResult & { logits: Float32Array }>;
  }

  dispose(): void {
    this.plan.dispose();
    this.kv.dispose();
    for (const matrix of this.matrices) matrix.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
