import type { GgufFile } from "@niwaki/gguf";
import type { RopeScaling } from "./rope.js";

/** The hyperparameters of a Qwen3 GGUF. */
export interface ReferenceConfig {
  layers: number;
  hidden: number;
  heads: number;
  kvHeads: number;
  headDim: number;
  ffn: number;
  vocabulary: number;
  epsilon: number;
  ropeBase: number;
  ropeScaling: RopeScaling;
}

/** @throws Error when the file is no Qwen3 or scales RoPE in a way this reference does not know. */
export function readConfig(file: GgufFile): ReferenceConfig {
  const architecture = file.string("general.architecture");
  if (architecture !== "qwen3") throw new Error(`${file.path}: architecture ${architecture}, expected qwen3`);
  return {
    layers: file.number("qwen3.block_count"),
    hidden: file.number("qwen3.embedding_length"),
    heads: file.number("qwen3.attention.head_count"),
    kvHeads: file.number("qwen3.attention.head_count_kv"),
    headDim: file.number("qwen3.attention.key_length"),
    ffn: file.number("qwen3.feed_forward_length"),
    vocabulary: file.tensor("token_embd.weight").dims[1]!,
    epsilon: file.number("qwen3.attention.layer_norm_rms_epsilon"),
    ropeBase: file.number("qwen3.rope.freq_base"),
    ropeScaling: readRopeScaling(file),
  };
}

function readRopeScaling(file: GgufFile): RopeScaling {
  const prefix = "qwen3.rope.scaling.";
  const keys = [...file.metadata.keys()].filter((key) => key.startsWith(prefix)).map((key) => key.slice(prefix.length));
  const type = keys.length === 0 ? "none" : file.string(`${prefix}type`);
  const known = ["type"];
  let scaling: RopeScaling;
  if (type === "none") {
    scaling = { type };
    known.push("factor", "original_context_length");
  } else if (type === "linear") {
    scaling = { type, factor: file.number(`${prefix}factor`) };
    known.push("factor", "original_context_length");
  } else if (type === "yarn") {
    scaling = {
      type,
      factor: file.number(`${prefix}factor`),
      originalContext: file.number(`${prefix}original_context_length`),
      betaFast: file.has(`${prefix}yarn_beta_fast`) ? file.number(`${prefix}yarn_beta_fast`) : 32,
      betaSlow: file.has(`${prefix}yarn_beta_slow`) ? file.number(`${prefix}yarn_beta_slow`) : 1,
    };
    known.push("factor", "original_context_length", "yarn_beta_fast", "yarn_beta_slow");
  } else {
    throw new Error(`${file.path}: ${prefix}type is ${type}, expected none, linear or yarn`);
  }
  const unknown = keys.find((key) => !known.includes(key));
  if (unknown !== undefined) throw new Error(`${file.path}: ${prefix}${unknown} is not known to the reference`);
  return scaling;
}
