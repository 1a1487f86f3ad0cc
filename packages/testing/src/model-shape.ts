import { type TensorType, tensorTypes } from "@niwaki/gguf";

/** What a random Qwen3 GGUF looks like. */
export interface RandomModelShape {
  layers: number;
  hidden: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  ffn: number;
  /** Tokens, at least 259: every byte and three control tokens. */
  vocabulary: number;
  /** Whether the embedding is also the LM head. */
  tied: boolean;
  contextLength: number;
  /** 1,000,000 unless given. */
  ropeBase?: number;
  /** RoPE scaling of type linear; not beside `yarn`. */
  linear?: { factor: number };
  yarn?: { factor: number; originalContext: number };
  /** Type of the matrices, one for all or by tensor name; norms are always F32. */
  type: TensorType | ((tensorName: string) => TensorType);
}

const bonsai = { headDim: 128, kvHeads: 8, vocabulary: 151_669, type: "Q1_0" } as const;

/** The shapes of the published Bonsai models, in Q1_0. Take fewer `layers` for a small model with full-sized matrices. */
export const shapes = {
  "8b": {
    ...bonsai,
    layers: 36,
    hidden: 4096,
    heads: 32,
    ffn: 12_288,
    tied: false,
    contextLength: 65_536,
    yarn: { factor: 4, originalContext: 16_384 },
  },
  "4b": { ...bonsai, layers: 36, hidden: 2560, heads: 32, ffn: 9728, tied: true, contextLength: 32_768 },
  "1.7b": { ...bonsai, layers: 28, hidden: 2048, heads: 16, ffn: 6144, tied: true, contextLength: 32_768 },
} as const satisfies Record<string, RandomModelShape>;

/** A matrix `W` [outputs, inputs] of a model, with the standard deviation its weights should have. */
export interface MatrixShape {
  name: string;
  inputs: number;
  outputs: number;
  type: TensorType;
  deviation: number;
}

/** A norm's weight. */
export interface VectorShape {
  name: string;
  length: number;
}

/** The tensors of a model in file order. */
export function tensorShapes(shape: RandomModelShape): (MatrixShape | VectorShape)[] {
  const { layers, hidden, heads, kvHeads, headDim, ffn, vocabulary } = shape;
  const matrix = (name: string, inputs: number, outputs: number, deviation = 1 / Math.sqrt(inputs)): MatrixShape => {
    const type = typeof shape.type === "function" ? shape.type(name) : shape.type;
    const { blockSize } = tensorTypes[type];
    if (inputs % blockSize !== 0) {
      throw new RangeError(`${name}: rows of ${inputs} weights are no whole number of ${type} blocks of ${blockSize}`);
    }
    return { name, inputs, outputs, type, deviation };
  };
  // Normed hidden states have unit size, so logits have a deviation of about 2: a peaked softmax, but not a one-hot one.
  const lmHead = 2 / Math.sqrt(hidden);
  // Attention averages and SwiGLU shrinks, so all additions to the residual stream together come to about unit size: more
  // than a tied embedding, which would otherwise answer every token with itself.
  const residual = (inputs: number) => Math.sqrt(2 / (layers * inputs));
  const tensors: (MatrixShape | VectorShape)[] = [
    matrix("token_embd.weight", hidden, vocabulary, shape.tied ? lmHead : 1),
    { name: "output_norm.weight", length: hidden },
  ];
  if (!shape.tied) tensors.push(matrix("output.weight", hidden, vocabulary, lmHead));
  for (let layer = 0; layer < layers; layer++) {
    const name = (part: string) => `blk.${layer}.${part}.weight`;
    tensors.push(
      { name: name("attn_norm"), length: hidden },
      matrix(name("attn_q"), hidden, heads * headDim),
      matrix(name("attn_k"), hidden, kvHeads * headDim),
      matrix(name("attn_v"), hidden, kvHeads * headDim),
      { name: name("attn_q_norm"), length: headDim },
      { name: name("attn_k_norm"), length: headDim },
      matrix(name("attn_output"), heads * headDim, hidden, residual(heads * headDim)),
      { name: name("ffn_norm"), length: hidden },
      matrix(name("ffn_gate"), hidden, ffn),
      matrix(name("ffn_up"), hidden, ffn),
      matrix(name("ffn_down"), ffn, hidden, residual(ffn)),
    );
  }
  return tensors;
}
