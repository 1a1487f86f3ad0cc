import type { Buffer, Encoder, KvLayer, Matrix, QkvBuffer, Vector } from "@niwaki/kernels-native";
import type { Qwen3Config } from "./config.js";

export interface LayerWeights {
  readonly attnNorm: Vector;
  /** Q over K over V. */
  readonly qkv: Matrix;
  readonly qNorm: Vector;
  readonly kNorm: Vector;
  readonly attnOutput: Matrix;
  readonly ffnNorm: Vector;
  /** Gate over up. */
  readonly gateUp: Matrix;
  readonly down: Matrix;
}

/** Activations that every layer uses in turn. */
export interface Scratch {
  readonly hidden: Buffer;
  readonly normed: Buffer;
  readonly qkv: QkvBuffer;
  readonly attn: Buffer;
  readonly ffn: Buffer;
  readonly rope: Buffer;
}

export function createScratch(e: Encoder, c: Qwen3Config): Scratch {
  return {
    hidden: e.buffer(c.hidden),
    normed: e.buffer(c.hidden),
    qkv: e.qkvBuffer(c.heads, c.kvHeads, c.headDim),
    attn: e.buffer(c.heads * c.headDim),
    ffn: e.buffer(c.ffn),
    rope: e.ropeTable(c.rope),
  };
}

/** One layer of Qwen3 (Qwen3 Technical Report, 2025): RMSNorm, grouped-query attention with Q/K norm and RoPE, SwiGLU. */
export function encodeLayer(e: Encoder, w: LayerWeights, s: Scratch, kv: KvLayer, c: Qwen3Config): void {
  e.rmsNorm(s.hidden, w.attnNorm, s.normed, c.rmsNormEps);
  e.linear(s.normed, w.qkv, s.qkv);
  e.qkNormRope(s.qkv, w.qNorm, w.kNorm, s.rope, c.rmsNormEps);
  e.kvStore(s.qkv, kv);
  e.pagedAttention(s.qkv, kv, s.attn);
  e.linear(s.attn, w.attnOutput, s.hidden, { accumulate: true });
  e.rmsNorm(s.hidden, w.ffnNorm, s.normed, c.rmsNormEps);
  e.linear(s.normed, w.gateUp, s.ffn, { activation: "swiglu" });
  e.linear(s.ffn, w.down, s.hidden, { accumulate: true });
}
