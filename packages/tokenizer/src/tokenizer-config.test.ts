import { describe, expect, test } from "vitest";
import { smallConfig, thrownBy } from "./test-support.js";
import { Tokenizer } from "./tokenizer.js";
import { tokenizerConfigFromMetadata } from "./tokenizer-config.js";

function metadata(changes: Record<string, unknown> = {}): Map<string, unknown> {
  const config = smallConfig();
  const all = {
    "general.architecture": "qwen3",
    "tokenizer.ggml.model": config.model,
    "tokenizer.ggml.pre": config.pre,
    "tokenizer.ggml.tokens": config.tokens,
    "tokenizer.ggml.token_type": config.tokenTypes,
    "tokenizer.ggml.merges": config.merges,
    "tokenizer.ggml.eos_token_id": 258,
    ...changes,
  };
  return new Map(Object.entries(all).filter(([, value]) => value !== undefined));
}

describe("tokenizerConfigFromMetadata", () => {
  test("reads what is required", () => {
    const { chatTemplate: _, ...config } = smallConfig();
    expect(tokenizerConfigFromMetadata(metadata())).toEqual(config);
  });

  test("reads what is optional", () => {
    const config = tokenizerConfigFromMetadata(
      metadata({
        "tokenizer.ggml.bos_token_id": 259,
        "tokenizer.ggml.padding_token_id": 260n,
        "tokenizer.ggml.add_bos_token": true,
        "tokenizer.chat_template": "{{ x }}",
      }),
    );
    expect(config).toEqual(
      smallConfig({ bosTokenId: 259, paddingTokenId: 260, addBosToken: true, chatTemplate: "{{ x }}" }),
    );
  });

  test.each([
    ["tokenizer.ggml.model", "a string"],
    ["tokenizer.ggml.pre", "a string"],
    ["tokenizer.ggml.tokens", "an array of strings"],
    ["tokenizer.ggml.token_type", "an array of numbers"],
    ["tokenizer.ggml.merges", "an array of strings"],
    ["tokenizer.ggml.eos_token_id", "an integer"],
  ])("%s missing, or of another type", (key, kind) => {
    expect(thrownBy(() => tokenizerConfigFromMetadata(metadata({ [key]: undefined })))).toEqual({
      code: "missing-key",
      key,
      message: `The metadata has no ${key} (${kind}); the file has no complete tokenizer. Convert the model again.`,
    });
    expect(thrownBy(() => tokenizerConfigFromMetadata(metadata({ [key]: [true] })))).toEqual({
      code: "wrong-type",
      key,
      message: `${key} must be ${kind}, not [true].`,
    });
  });

  test.each([
    ["tokenizer.ggml.bos_token_id", "an integer"],
    ["tokenizer.ggml.add_bos_token", "a boolean"],
    ["tokenizer.chat_template", "a string"],
  ])("%s of another type", (key, kind) => {
    expect(thrownBy(() => tokenizerConfigFromMetadata(metadata({ [key]: 0.5 })))).toEqual({
      code: "wrong-type",
      key,
      message: `${key} must be ${kind}, not 0.5.`,
    });
  });

  test.each<[string, Record<string, unknown>, string, string, string]>([
    [
      "another model",
      { "tokenizer.ggml.model": "llama" },
      "unsupported-model",
      "tokenizer.ggml.model",
      'tokenizer.ggml.model is "llama"; supported is "gpt2" (byte-level BPE). Use a GGUF of a Qwen3 model.',
    ],
    [
      "another pre-tokenizer",
      { "tokenizer.ggml.pre": "llama-bpe" },
      "unsupported-model",
      "tokenizer.ggml.pre",
      'tokenizer.ggml.pre is "llama-bpe"; supported is "qwen2" (the pre-tokenizer of Qwen2, Qwen2.5 and Qwen3). ' +
        "Use a GGUF of a Qwen3 model.",
    ],
    [
      "no tokens",
      { "tokenizer.ggml.tokens": [] },
      "bad-value",
      "tokenizer.ggml.tokens",
      "tokenizer.ggml.tokens is empty; a tokenizer needs a vocabulary.",
    ],
    [
      "fewer types than tokens",
      { "tokenizer.ggml.token_type": [1] },
      "bad-value",
      "tokenizer.ggml.token_type",
      "tokenizer.ggml.token_type has 1 entries for 264 tokens; it must have one for each.",
    ],
    [
      "an unknown type",
      { "tokenizer.ggml.token_type": [1, 7, ...new Array(262).fill(1)] },
      "bad-value",
      "tokenizer.ggml.token_type[1]",
      "tokenizer.ggml.token_type[1] is 7; token types go from 0 to 6.",
    ],
    [
      "an id out of range",
      { "tokenizer.ggml.eos_token_id": 264 },
      "bad-value",
      "tokenizer.ggml.eos_token_id",
      "tokenizer.ggml.eos_token_id is 264, but the vocabulary has the ids 0 to 263.",
    ],
    [
      "BOS wanted but unknown",
      { "tokenizer.ggml.add_bos_token": true },
      "bad-value",
      "tokenizer.ggml.add_bos_token",
      "tokenizer.ggml.add_bos_token is true, but tokenizer.ggml.bos_token_id is missing.",
    ],
  ])("%s", (_name, changes, code, key, message) => {
    expect(thrownBy(() => tokenizerConfigFromMetadata(metadata(changes)))).toEqual({ code, key, message });
  });
});

test.each(["he", " he", "h he", "he x", "q q"])("the merge %j is an error", (merge) => {
  expect(thrownBy(() => new Tokenizer(smallConfig({ merges: ["h e", merge] })))).toEqual({
    code: "bad-value",
    key: "tokenizer.ggml.merges[1]",
    message:
      `tokenizer.ggml.merges[1] is ${JSON.stringify(merge)}, which is not two tokens, separated by a space, ` +
      "whose union is a token.",
  });
});

test("the constructor checks a config of the caller's own", () => {
  expect(thrownBy(() => new Tokenizer(smallConfig({ eosTokenId: -1 }))).key).toBe("tokenizer.ggml.eos_token_id");
});
