import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { smallConfig, thrownBy } from "./test-support.js";
import { Tokenizer } from "./tokenizer.js";

const small = new Tokenizer(smallConfig());

function streamed(ids: readonly number[]): string[] {
  const stream = small.stream();
  return [...ids.map((id) => stream.push(id)), stream.end()];
}

describe("encode", () => {
  test("merges, and user-defined tokens always", () => {
    expect(small.encode("hey<think>")).toEqual([257, 262]);
    expect(small.encode("hey<think>", { controlTokens: false })).toEqual([257, 262]);
  });

  test("control tokens unless they are asked to be text; unused tokens never", () => {
    expect(small.encode("<|end|>")).toEqual([258]);
    expect(small.encode("<|end|>", { controlTokens: false })).toEqual([...Buffer.from("<|end|>")]);
    expect(small.encode("[PAD]")).toEqual([...Buffer.from("[PAD]")]);
  });

  test("starts with BOS where the model wants it", () => {
    const tokenizer = new Tokenizer(smallConfig({ addBosToken: true, bosTokenId: 259 }));
    expect(tokenizer.encode("he")).toEqual([259, 256]);
    expect(tokenizer.encode("")).toEqual([259]);
    // The template wrote one already.
    expect(tokenizer.encodeChat([{ role: "user", content: "" }]).slice(0, 2)).toEqual([259, 117]);
  });

  test("tokens that are names of object properties", () => {
    const config = smallConfig();
    config.tokens[256] = "__proto__";
    config.tokens[257] = "constructor";
    const tokenizer = new Tokenizer({ ...config, merges: [] });
    expect(tokenizer.encode("__proto__constructor")).toEqual([...Buffer.from("__proto__constructor")]);
    expect(tokenizer.decode([256, 257])).toBe("__proto__constructor");
  });

  test("a byte without a token is an error, and no text is lost", () => {
    const config = smallConfig();
    config.tokens[0x7a] = "zz";
    const tokenizer = new Tokenizer(config);
    expect(tokenizer.encode("hey")).toEqual([257]);
    expect(thrownBy(() => tokenizer.encode("fizz"))).toEqual({
      code: "unencodable-text",
      key: "tokenizer.ggml.tokens",
      message:
        'The vocabulary has no token for the byte 0x7a in "fizz"; tokenizer.ggml.tokens of a byte-level tokenizer ' +
        "should hold all 256. Convert the model again.",
    });
  });

  test("what is not a string is an error", () => {
    expect(() => small.encode(7 as unknown as string)).toThrow("text must be a string, not 7.");
  });
});

describe("decode", () => {
  test("streams the same text for any bytes", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 30 }), (bytes) => {
        expect(streamed([...bytes]).join("")).toBe(Buffer.from(bytes).toString("utf8"));
      }),
      { seed: 3, numRuns: 500 },
    );
  });

  test("keeps back a character until it is whole", () => {
    expect(streamed([...Buffer.from("é🦊!")])).toEqual(["", "é", "", "", "", "🦊", "!", ""]);
    expect(streamed([0xf0, 0x9f, 258])).toEqual(["", "", "\ufffd<|end|>", ""]);
    expect(streamed([0xf0, 0x9f])).toEqual(["", "", "\ufffd"]);
  });

  test("a stream starts anew after its end", () => {
    const stream = small.stream();
    stream.push(0xf0);
    stream.end();
    expect(stream.push(0x61)).toBe("a");
  });

  test("keeps a byte order mark", () => expect(small.decode([0xef, 0xbb, 0xbf, 0x61])).toBe("\ufeffa"));

  test("leaves out control tokens when asked, and no others", () => {
    expect(small.decode([258, 262, 97, 261])).toBe("<|end|><think>a[PAD]");
    expect(small.decode([258, 262, 97, 261], { skipControlTokens: true })).toBe("<think>a[PAD]");
  });

  test("takes a typed array", () => expect(small.decode(Int32Array.of(257, 33))).toBe("hey!"));

  test.each([264, -1, 0.5, Number.NaN])("the id %d is an error", (id) => {
    const error = { code: "bad-token-id", message: `${id} is not a token id; the vocabulary has the ids 0 to 263.` };
    expect(thrownBy(() => small.decode([97, id]))).toEqual(error);
    expect(thrownBy(() => small.stream({ skipControlTokens: true }).push(id))).toEqual(error);
  });
});
