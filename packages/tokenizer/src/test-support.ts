import { characterOfByte } from "./byte-alphabet.js";
import type { TokenizerConfig } from "./tokenizer-config.js";
import { TokenizerError } from "./tokenizer-error.js";

/**
 * A tokenizer of the 256 bytes (ids as the bytes), the merges "h e" and "he y", and six added tokens: control
 * `<|end|>` 258, `<|start|>` 259, `<|endoftext|>` 260, unused `[PAD]` 261, user-defined `<think>` 262, `</think>` 263.
 */
export function smallConfig(changes: Partial<TokenizerConfig> = {}): TokenizerConfig {
  const added = ["<|end|>", "<|start|>", "<|endoftext|>", "[PAD]", "<think>", "</think>"];
  return {
    model: "gpt2",
    pre: "qwen2",
    tokens: [...characterOfByte, "he", "hey", ...added],
    tokenTypes: [...new Array<number>(258).fill(1), 3, 3, 3, 5, 4, 4],
    merges: ["h e", "he y"],
    eosTokenId: 258,
    addBosToken: false,
    chatTemplate:
      "{% for message in messages %}{{ '<|start|>' + message.role + ':' + message.content + '<|end|>' }}{% endfor %}" +
      "{% if add_generation_prompt %}{{ '<|start|>assistant:' }}{% endif %}",
    ...changes,
  };
}

/** The code, key and message of the {@link TokenizerError} that `run` must throw. */
export function thrownBy(run: () => unknown): Pick<TokenizerError, "code" | "key" | "message"> {
  try {
    run();
  } catch (error) {
    if (!(error instanceof TokenizerError)) throw error;
    const { code, key, message } = error;
    return { code, message, ...(key === undefined ? {} : { key }) };
  }
  throw new Error("nothing was thrown");
}
