import { describe, expect, it } from "vitest";
import { GgufError, type GgufErrorCode } from "./gguf-error.js";
import { parseHeader } from "./header.js";
import { entry, rawGguf, tensorInfo, text, typeIds, u32, u64 } from "./test-raw-gguf.js";

const { uint8, uint32, float32, bool, string, array, uint64 } = typeIds;

async function refusal(bytes: Buffer): Promise<GgufError> {
  const error = await parseHeader(bytes, bytes.length, "model.gguf").then(
    () => expect.fail("was read"),
    (reason: unknown) => reason,
  );
  expect(error).toBeInstanceOf(GgufError);
  return error as GgufError;
}

type Refusal = [what: string, bytes: Buffer, code: GgufErrorCode, offset: number, message: string];

const huge = 2n ** 60n;

describe("a header is refused for", () => {
  it.each<Refusal>([
    [
      "an empty file",
      Buffer.alloc(0),
      "not-gguf",
      0,
      "model.gguf: a file of 0 bytes is no GGUF; the download has probably failed (at byte 0)",
    ],
    ["another magic", rawGguf({ magic: "ABCD" }), "not-gguf", 0, 'starts with "ABCD", not "GGUF"; pass a .gguf file'],
    [
      "a Git LFS pointer",
      Buffer.from("version https://git-lfs.github.com/spec/v1\n"),
      "not-gguf",
      0,
      "it is a Git LFS pointer",
    ],
    ["a web page", Buffer.from("<!DOCTYPE html><html>"), "not-gguf", 0, "it is a web page"],
    [
      "safetensors",
      Buffer.concat([u64(100), Buffer.from('{"a":{}}')]),
      "not-gguf",
      0,
      "safetensors file: convert it to GGUF",
    ],
    ["a zip", Buffer.from("PK\u0003\u0004........"), "not-gguf", 0, "PyTorch checkpoint"],
    ["GGML", Buffer.from("lmgg\u0001\u0000\u0000\u0000"), "not-gguf", 0, "a format older than GGUF"],
    [
      "a big-endian version",
      rawGguf({ version: Buffer.from([0, 0, 0, 3]) }),
      "wrong-endian",
      4,
      "the file is a big-endian GGUF",
    ],
    ["a reversed magic", rawGguf({ magic: "FUGG" }), "wrong-endian", 0, "the file is a big-endian GGUF"],
    [
      "version 1",
      rawGguf({ version: u32(1) }),
      "unsupported-version",
      4,
      "GGUF version 1 cannot be read, only 2 and 3; convert the original model again",
    ],
    ["version 4", rawGguf({ version: u32(4) }), "unsupported-version", 4, "GGUF version 4 cannot be read"],
    ["version 0", rawGguf({ version: u32(0) }), "unsupported-version", 4, "GGUF version 0 cannot be read"],
    [
      "the magic alone",
      Buffer.from("GGUF"),
      "truncated",
      4,
      "the version takes 4 bytes, but only 0 are left in the file of 4 bytes",
    ],
    ["2^60 tensors", rawGguf({ tensorCount: huge }), "truncated", 8, "announces 1152921504606847000 tensors"],
    ["2^60 keys", rawGguf({ keyCount: huge }), "truncated", 16, "announces 1152921504606847000 metadata keys"],
    [
      "2^64-1 keys",
      rawGguf({ keyCount: 2n ** 64n - 1n }),
      "truncated",
      16,
      "announces 18446744073709552000 metadata keys",
    ],
    [
      "more keys than any model has",
      rawGguf({ keyCount: 100_001, data: Buffer.alloc(2_000_000) }),
      "corrupt",
      16,
      "more than 100000 are not read",
    ],
  ])("%s", async (_, bytes, code, offset, message) => {
    const error = await refusal(bytes);
    expect(error.message).toContain(message);
    expect(error).toMatchObject({ code, offset, path: "model.gguf" });
  });

  const room = Buffer.alloc(64);
  it.each<Refusal>([
    [
      "no text in a key",
      rawGguf({ entries: [entry("", uint8, room)] }),
      "corrupt",
      24,
      "metadata key 0 is 0 bytes long",
    ],
    [
      "a key beyond the file",
      rawGguf({ entries: [u64(1000), room] }),
      "truncated",
      32,
      "metadata key 0 takes 1000 bytes, but only 64 are left",
    ],
    ["a key of 2^60 bytes", rawGguf({ entries: [u64(huge), room] }), "corrupt", 24, "1 to 65535 are allowed"],
    [
      "a key that is no ASCII",
      rawGguf({ entries: [entry("schlüssel", uint8, room)] }),
      "corrupt",
      24,
      "printable ASCII only",
    ],
    [
      "a key that is no UTF-8",
      rawGguf({ entries: [entry(Buffer.from([0x61, 0xff]), uint8, room)] }),
      "corrupt",
      24,
      "metadata key 0 is not UTF-8",
    ],
  ])("%s", async (_, bytes, code, offset, message) => {
    const error = await refusal(bytes);
    expect(error.message).toContain(message);
    expect(error).toMatchObject({ code, offset });
  });

  const at = 24 + 8 + 1; // of the type of a metadata value whose key has one letter
  const nest = (depth: number): Buffer[] =>
    depth === 0 ? [u32(uint8), u64(0)] : [u32(array), u64(1), ...nest(depth - 1)];
  it.each<Refusal>([
    [
      "a value of type 13",
      rawGguf({ entries: [entry("k", 13, room)] }),
      "corrupt",
      at,
      "has the type 13; GGUF has the types 0 to 12",
    ],
    [
      "a value cut short",
      rawGguf({ entries: [entry("k", uint64, u32(0))] }),
      "truncated",
      at + 4,
      'the value of metadata key "k" takes 8 bytes, but only 4 are left',
    ],
    [
      "a boolean of 2",
      rawGguf({ entries: [entry("k", bool, Buffer.from([2]))] }),
      "corrupt",
      at + 4,
      "has a boolean of 2",
    ],
    [
      "a string beyond the file",
      rawGguf({ entries: [entry("k", string, u64(65), room)] }),
      "truncated",
      at + 12,
      "takes 65 bytes, but only 64 are left",
    ],
    [
      "a string of 2^60 bytes",
      rawGguf({ entries: [entry("k", string, u64(huge), room)] }),
      "truncated",
      at + 12,
      "takes 1152921504606847000 bytes",
    ],
    [
      "a string of 2^64-1 bytes",
      rawGguf({ entries: [entry("k", string, u64(2n ** 64n - 1n), room)] }),
      "truncated",
      at + 12,
      "but only 64 are left",
    ],
    [
      "a string that is no UTF-8",
      rawGguf({ entries: [entry("k", string, text(Buffer.from([0xc3, 0x28])))] }),
      "corrupt",
      at + 4,
      "is not UTF-8",
    ],
    [
      "an array of type 13",
      rawGguf({ entries: [entry("k", array, u32(13), u64(0))] }),
      "corrupt",
      at + 4,
      "is an array of type 13",
    ],
    [
      "an array of 2^60 numbers",
      rawGguf({ entries: [entry("k", array, u32(float32), u64(huge), room)] }),
      "truncated",
      at + 4,
      "is an array of 1152921504606847000 elements, which take at least 4611686018427388000 bytes, but only 64 are left",
    ],
    [
      "an array of 2^60 strings",
      rawGguf({ entries: [entry("k", array, u32(string), u64(huge), room)] }),
      "truncated",
      at + 4,
      "1152921504606847000 elements",
    ],
    [
      "an array of 2^60 arrays",
      rawGguf({ entries: [entry("k", array, u32(array), u64(huge), room)] }),
      "truncated",
      at + 4,
      "1152921504606847000 elements",
    ],
    [
      "a string beyond the file in an array",
      rawGguf({ entries: [entry("k", array, u32(string), u64(2), text("a"), u64(9))] }),
      "truncated",
      at + 33,
      'an element of the value of metadata key "k" takes 9 bytes, but only 0 are left',
    ],
    [
      "a string in an array that is no UTF-8",
      rawGguf({ entries: [entry("k", array, u32(string), u64(1), text(Buffer.from([0xff])))] }),
      "corrupt",
      at + 16,
      "is not UTF-8",
    ],
    [
      "a boolean of 3 in an array",
      rawGguf({ entries: [entry("k", array, u32(bool), u64(2), Buffer.from([1, 3]))] }),
      "corrupt",
      at + 17,
      "has a boolean of 3",
    ],
    [
      "arrays nested 5 deep",
      rawGguf({ entries: [entry("k", array, ...nest(4))] }),
      "corrupt",
      at + 4 + 4 * 12,
      "nested more than 4 deep",
    ],
    [
      "arrays nested 1000 deep",
      rawGguf({ entries: [entry("k", array, ...nest(1000))] }),
      "corrupt",
      at + 4 + 4 * 12,
      "nested more than 4 deep",
    ],
    [
      "a key that stands twice",
      rawGguf({ entries: [entry("k", bool, Buffer.from([1])), entry("k", bool, Buffer.from([1]))] }),
      "corrupt",
      at + 5,
      'the metadata key "k" stands twice',
    ],
  ])("%s", async (_, bytes, code, offset, message) => {
    const error = await refusal(bytes);
    expect(error.message).toContain(message);
    expect(error).toMatchObject({ code, offset, key: "k" });
  });

  it("arrays of more than 8 million elements together", async () => {
    const bytes = (count: number) => [u32(uint8), u64(count), Buffer.alloc(count)];
    const entries = [entry("a", array, ...bytes(5_000_000)), entry("b", array, ...bytes(3_000_001))];
    const error = await refusal(rawGguf({ entries }));
    expect(error).toMatchObject({ code: "corrupt", key: "b" });
    expect(error.message).toContain("one of arrays with more than 8000000 elements; that is not read");
  });

  it("a key that no JavaScript object can have", async () => {
    const error = await refusal(rawGguf({ entries: [entry("__proto__", uint32, u32(1))] }));
    expect(error).toMatchObject({ code: "corrupt", offset: 24, key: "__proto__" });
  });

  it.each([
    ["zero", uint32, u32(0), 53, "general.alignment is 0; it must be a power of two"],
    ["no power of two", uint32, u32(48), 53, "general.alignment is 48; it must be a power of two"],
    ["no uint32", uint64, u64(32), 49, "general.alignment has the type 10; it must be 4, a uint32"],
    ["a text", string, text("32"), 49, "general.alignment has the type 8; it must be 4, a uint32"],
  ])("an alignment that is %s", async (_, typeId, value, offset, message) => {
    const error = await refusal(rawGguf({ entries: [entry("general.alignment", typeId, value)] }));
    expect(error.message).toBe(`model.gguf: ${message} (at byte ${offset})`);
    expect(error).toMatchObject({ code: "corrupt", offset, key: "general.alignment" });
  });

  const data = Buffer.alloc(256);
  it.each<Refusal>([
    [
      "a tensor of no dimensions",
      rawGguf({ tensors: [tensorInfo("w", [], 0, 0)], data }),
      "corrupt",
      33,
      "has 0 dimensions; the format allows 1 to 4",
    ],
    [
      "a tensor of 5 dimensions",
      rawGguf({ tensors: [tensorInfo("w", [1, 1, 1, 1, 1], 0, 0)], data }),
      "corrupt",
      33,
      "has 5 dimensions",
    ],
    [
      "a tensor of 2^32-1 dimensions",
      rawGguf({ tensors: [Buffer.concat([text("w"), u32(2 ** 32 - 1), data])] }),
      "corrupt",
      33,
      "has 4294967295 dimensions",
    ],
    [
      "a dimension of 0",
      rawGguf({ tensors: [tensorInfo("w", [4, 0], 0, 0)], data }),
      "corrupt",
      45,
      "has the dimension 0",
    ],
    [
      "a dimension of 2^64-1",
      rawGguf({ tensors: [tensorInfo("w", [2n ** 64n - 1n], 0, 0)], data }),
      "corrupt",
      37,
      "1 to 2^32 can be read",
    ],
    [
      "dimensions that overflow",
      rawGguf({ tensors: [tensorInfo("w", [2 ** 32, 2 ** 32, 2 ** 32], 0, 0)], data }),
      "corrupt",
      24,
      "more than 2^53 weights",
    ],
    [
      "a tensor that does not fit the file",
      rawGguf({ tensors: [tensorInfo("w", [65], 0, 0)], data }),
      "truncated",
      24,
      'tensor "w" takes the bytes 64 to 324, but the file ends at 320; it is cut short or damaged',
    ],
    [
      "an offset beyond the file",
      rawGguf({ tensors: [tensorInfo("w", [1], 0, 256)], data }),
      "truncated",
      24,
      'tensor "w" starts at byte 320, but the file ends at 320',
    ],
    [
      "an offset of 2^64-32",
      rawGguf({ tensors: [tensorInfo("w", [1], 0, 2n ** 64n - 32n)], data }),
      "truncated",
      24,
      "but the file ends at 320",
    ],
    [
      "an unaligned offset",
      rawGguf({ tensors: [tensorInfo("w", [1], 0, 16)], data }),
      "corrupt",
      24,
      "has the offset 16, which is no multiple of the file's alignment, 32",
    ],
    [
      "rows of part of a block",
      rawGguf({ tensors: [tensorInfo("w", [64, 2], 41, 0)], data }),
      "corrupt",
      24,
      "has rows of 64 weights, which is no multiple of the 128 in a block of Q1_0",
    ],
    [
      "type 42 with rows of part of a block",
      rawGguf({ tensors: [tensorInfo("w", [32, 4], 42, 0)], data }),
      "corrupt",
      24,
      "has rows of 32 weights, which is no multiple of the 64 in a block of Q2_0",
    ],
    [
      "type 42 that both layouts fit",
      rawGguf({ tensors: [tensorInfo("w", [128, 2], 42, 0)], data: Buffer.alloc(96) }),
      "unsupported-type",
      24,
      "has room for 96 bytes, but takes 72 bytes in blocks of 64, 68 bytes in blocks of 128, padded to 32: both fit; write it as PQ2_0",
    ],
    [
      "type 42 that neither layout fits",
      rawGguf({ tensors: [tensorInfo("w", [128, 2], 42, 0)], data }),
      "unsupported-type",
      24,
      "neither fits",
    ],
    [
      "type 42 cut short",
      rawGguf({ tensors: [tensorInfo("w", [128, 64], 42, 0)], data }),
      "truncated",
      24,
      "neither fits; the file is cut short",
    ],
  ])("%s", async (_, bytes, code, offset, message) => {
    const error = await refusal(bytes);
    expect(error.message).toContain(message);
    expect(error).toMatchObject({ code, offset, tensor: "w" });
  });

  it("tensors that overlap", async () => {
    const tensors = [tensorInfo("a", [9], 0, 0), tensorInfo("b", [9], 0, 32)];
    const error = await refusal(rawGguf({ tensors, data }));
    expect(error.message).toBe(
      'model.gguf: tensor "a" takes the bytes 96 to 132, where "b" starts at 128; the file is damaged: convert the model again (at byte 24)',
    );
    expect(error).toMatchObject({ code: "corrupt", tensor: "a" });
  });

  it.each([0, 99])("two tensors of type %d at one place", async (typeId) => {
    const tensors = [tensorInfo("a", [8], typeId, 0), tensorInfo("b", [8], typeId, 0)];
    expect(await refusal(rawGguf({ tensors, data }))).toMatchObject({ code: "corrupt", tensor: "a" });
  });

  it("tensors of one name", async () => {
    const error = await refusal(rawGguf({ tensors: [tensorInfo("w", [8], 0, 0), tensorInfo("w", [8], 0, 32)], data }));
    expect(error).toMatchObject({ code: "corrupt", tensor: "w", offset: 24 + 33 });
  });

  it("a tensor without a name, or one that is no UTF-8", async () => {
    const unnamed = await refusal(rawGguf({ tensors: [tensorInfo("", [8], 0, 0), Buffer.alloc(8)], data }));
    expect(unnamed).toMatchObject({ code: "corrupt", offset: 24 });
    expect(unnamed.message).toContain("the name of tensor 0 is 0 bytes long; 1 to 65535 are allowed");
    const broken = await refusal(rawGguf({ tensors: [tensorInfo(Buffer.from([0xff]), [8], 0, 0)], data }));
    expect(broken.message).toContain("the name of tensor 0 is not UTF-8");
  });
});
