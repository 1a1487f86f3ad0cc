import type { GgufFile } from "@niwaki/gguf";
import type { KvType } from "@niwaki/kernels-native";
import { type TokenizerConfig, tokenizerConfigFromMetadata } from "@niwaki/tokenizer";
import { type Qwen3Config, readConfig } from "./config.js";
import { ModelError } from "./error.js";
import { tensorProblems } from "./weights.js";

/** What a file holds, and everything that keeps it from running. */
export interface Examination {
  /** null when the metadata does not describe a Qwen3. */
  readonly config: Qwen3Config | null;
  readonly tokenizer: TokenizerConfig | null;
  /** ModelErrors and GgufErrors, each naming a key or tensor; none: the file can run. */
  readonly problems: readonly Error[];
}

/** Checks metadata, vocabulary and tensors of a GGUF against what a Qwen3 needs, without loading it. */
export function examineModel(file: GgufFile): Examination {
  const problems: Error[] = [];
  const attempt = <T>(read: () => T): T | null => {
    try {
      return read();
    } catch (error) {
      problems.push(error as Error);
      return null;
    }
  };
  const config = attempt(() => readConfig(file));
  const tokenizer = attempt(() => tokenizerConfigFromMetadata(file.metadata));
  if (config !== null) problems.push(...tensorProblems(file, config));
  if (config !== null && tokenizer !== null && tokenizer.tokens.length > config.vocabulary) {
    problems.push(
      new ModelError(
        "wrong-shape",
        `${file.path} has ${tokenizer.tokens.length} tokens, but embeddings for ${config.vocabulary} only.`,
        { tensor: "token_embd.weight", value: config.vocabulary },
      ),
    );
  }
  return { config, tokenizer, problems };
}

/** Bytes of KV cache for `tokens` tokens: K and V of every layer, with the scales of "q8". */
export function kvCacheBytes(config: Qwen3Config, tokens: number, type: KvType): number {
  const headBytes = { f16: 2 * config.headDim, f32: 4 * config.headDim, q8: config.headDim + 4 }[type];
  return 2 * config.layers * config.kvHeads * headBytes * tokens;
}
