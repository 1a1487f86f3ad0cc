import type { GgufFile } from "@niwaki/gguf";
import type { RopeOptions } from "@niwaki/kernels-native";
import { ModelError } from "./error.js";

/** The shape of a Qwen3 model, all of it read from the file. */
export interface Qwen3Config {
  readonly layers: number;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  /** Not hidden / heads: Qwen3-4B has 2560 / 32 = 80, and heads of 128. */
  readonly headDim: number;
  readonly ffn: number;
  readonly vocabulary: number;
  /** Tokens that the model was made for. */
  readonly contextLength: number;
  readonly rmsNormEps: number;
  readonly rope: RopeOptions;
  /** The embedding is the LM head too. */
  readonly tied: boolean;
}

/**
 * Reads the shape from a GGUF's metadata.
 * @throws ModelError `unsupported-architecture`, `unsupported-model`; GgufError for a missing or mistyped key.
 */
export function readConfig(file: GgufFile): Qwen3Config {
  const architecture = file.string("general.architecture");
  if (architecture !== "qwen3") {
    throw new ModelError(
      "unsupported-architecture",
      `${file.path} holds a model of architecture "${architecture}". Only "qwen3" can be run.`,
      { key: "general.architecture", value: architecture },
    );
  }
  const count = (key: string) => positiveInteger(file, `qwen3.${key}`);
  const headDim = count("attention.key_length");
  const valueLength = count("attention.value_length");
  if (valueLength !== headDim) {
    throw unsupported(file, "qwen3.attention.value_length", valueLength, `it must equal the key length, ${headDim}`);
  }
  if (headDim % 16 !== 0) {
    throw unsupported(file, "qwen3.attention.key_length", headDim, "it must be a multiple of 16");
  }
  const heads = count("attention.head_count");
  const kvHeads = count("attention.head_count_kv");
  if (heads % kvHeads !== 0) {
    throw unsupported(file, "qwen3.attention.head_count_kv", kvHeads, `it must divide the ${heads} query heads`);
  }
  const embedding = file.tensor("token_embd.weight");
  const vocabulary = embedding.dims[1];
  if (embedding.dims.length !== 2 || vocabulary === undefined) {
    throw new ModelError(
      "wrong-shape",
      `token_embd.weight of ${file.path} has the shape [${embedding.dims}]; [embedding length, vocabulary] is needed.`,
      { tensor: "token_embd.weight", value: embedding.dims },
    );
  }
  return {
    layers: count("block_count"),
    hidden: count("embedding_length"),
    heads,
    kvHeads,
    headDim,
    ffn: count("feed_forward_length"),
    vocabulary,
    contextLength: count("context_length"),
    rmsNormEps: positive(file, "qwen3.attention.layer_norm_rms_epsilon"),
    rope: readRope(file, headDim),
    tied: !file.tensors.has("output.weight"),
  };
}

function readRope(file: GgufFile, headDim: number): RopeOptions {
  const base = positive(file, "qwen3.rope.freq_base");
  const typeKey = "qwen3.rope.scaling.type";
  const type = file.has(typeKey) ? file.string(typeKey) : "none";
  const scaling = (key: string) => positive(file, `qwen3.rope.scaling.${key}`);
  const optional = (key: string, absent: number) => (file.has(`qwen3.rope.scaling.${key}`) ? scaling(key) : absent);
  switch (type) {
    case "none":
      return { headDim, base };
    case "linear":
      return { headDim, base, scaling: { type, factor: scaling("factor") } };
    case "yarn": {
      const extrapolation = optional("yarn_ext_factor", 1);
      if (extrapolation !== 1) {
        throw unsupported(file, "qwen3.rope.scaling.yarn_ext_factor", extrapolation, "only 1 can be run");
      }
      const factor = scaling("factor");
      return {
        headDim,
        base,
        scaling: {
          type,
          factor,
          originalContext: scaling("original_context_length"),
          betaFast: optional("yarn_beta_fast", 32),
          betaSlow: optional("yarn_beta_slow", 1),
          attentionFactor: optional("yarn_attn_factor", 1) * (0.1 * Math.log(factor) + 1),
        },
      };
    }
    default:
      throw unsupported(file, typeKey, type, 'only "none", "linear" and "yarn" can be run');
  }
}

function positive(file: GgufFile, key: string): number {
  const value = file.number(key);
  if (!Number.isFinite(value) || value <= 0) throw unsupported(file, key, value, "it must be a positive number");
  return value;
}

function positiveInteger(file: GgufFile, key: string): number {
  const value = positive(file, key);
  if (!Number.isInteger(value) || value > 2 ** 31 - 1) {
    throw unsupported(file, key, value, "it must be a positive 32-bit integer");
  }
  return value;
}

function unsupported(file: GgufFile, key: string, value: unknown, why: string): ModelError {
  return new ModelError("unsupported-model", `${key} of ${file.path} is ${JSON.stringify(value)}: ${why}.`, {
    key,
    value,
  });
}
