import { describe, expect, test } from "vitest";
import { randomTokenizer } from "./random-tokenizer.js";

describe("randomTokenizer", () => {
  test.each([259, 300, 1003, 151_669])("has exactly %i tokens, all different, control tokens last", (vocabulary) => {
    const { tokens, tokenTypes, bosId, eosId, padId } = randomTokenizer(vocabulary);
    expect(tokens).toHaveLength(vocabulary);
    expect(new Set(tokens).size).toBe(vocabulary);
    expect(tokens.slice(-3)).toEqual(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
    expect([tokens[bosId], tokens[eosId], tokens[padId]]).toEqual(["<|endoftext|>", "<|im_end|>", "<|endoftext|>"]);
    expect(tokenTypes.filter((type) => type === 1)).toHaveLength(vocabulary - 3);
    expect(tokenTypes.slice(-3)).toEqual([3, 3, 3]);
  });

  test("token n is byte n, in the byte-level alphabet", () => {
    const { tokens } = randomTokenizer(259);
    expect(tokens[0]).toBe("Ā");
    expect(tokens[0x20]).toBe("Ġ");
    expect(tokens[0x41]).toBe("A");
    expect(tokens[0x7f]).toBe("ġ");
    expect(tokens[0xad]).toBe("Ń");
    expect(tokens[0xff]).toBe("ÿ");
  });

  test("each merge joins two earlier tokens into the next one", () => {
    const { tokens, merges } = randomTokenizer(70_000);
    const ids = new Map(tokens.map((token, id) => [token, id]));
    expect(merges).toHaveLength(70_000 - 259);
    for (const [rank, merge] of merges.entries()) {
      const [left, right] = merge.split(" ") as [string, string];
      const id = 256 + rank;
      if (tokens[id] !== left + right || !(ids.get(left)! < id) || !(ids.get(right)! < id)) {
        expect.fail(`merge ${rank} is "${merge}" and token ${id} is "${tokens[id]}"`);
      }
    }
  });

  test("refuses a vocabulary without room for bytes and control tokens", () => {
    expect(() => randomTokenizer(258)).toThrow("a random tokenizer has 259 to 16,843,011 tokens, not 258");
    expect(() => randomTokenizer(300.5)).toThrow(RangeError);
  });
});
