import { readdir, readFile, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { GgufFile } from "./gguf-file.js";
import { alignUp, bytesFor, type TensorType, tensorTypes } from "./tensor-type.js";
import { temporaryFolder } from "./test-folder.js";
import { entry, rawGguf, tensorInfo, text, u32, u64 } from "./test-raw-gguf.js";
import type { ScalarType } from "./value-type.js";
import { type GgufContent, type TensorToWrite, writeGguf } from "./write-gguf.js";
import type { WriteValue } from "./write-value.js";

const at = temporaryFolder();

async function written(content: GgufContent): Promise<Buffer> {
  await writeGguf(at("a.gguf"), content);
  return await readFile(at("a.gguf"));
}

function metadataOf(metadata: Record<string, WriteValue>): Promise<Buffer> {
  return written({ metadata, tensors: [] });
}

function tensor(more: Partial<TensorToWrite> = {}): TensorToWrite {
  return { name: "w", dims: [4], type: "F32", data: new Uint8Array(16), ...more };
}

describe("bytes", () => {
  it("are those of the format", async () => {
    const bytes = await written({
      metadata: { "general.name": "maple", n: 7 },
      tensors: [
        { name: "a", dims: [2, 1], type: "F16", data: Uint8Array.of(1, 2, 3, 4) },
        { name: "b", dims: [128], type: "Q1_0", data: new Uint8Array(18).fill(5) },
      ],
    });
    const data = Buffer.alloc(64);
    data.set([1, 2, 3, 4]);
    data.fill(5, 32, 50);
    expect(bytes).toEqual(
      rawGguf({
        entries: [entry("general.name", 8, text("maple")), entry("n", 4, u32(7))],
        tensors: [tensorInfo("a", [2, 1], 1, 0), tensorInfo("b", [128], 41, 32)],
        data,
      }),
    );
  });

  it.each<[string, WriteValue, number, Buffer]>([
    ["0", 0, 4, u32(0)],
    ["the largest uint32", 2 ** 32 - 1, 4, u32(2 ** 32 - 1)],
    ["a negative integer", -1, 5, u32(2 ** 32 - 1)],
    ["a large integer", 2 ** 32, 11, u64(2 ** 32)],
    ["a large negative integer", -(2 ** 31) - 1, 11, u64(2n ** 64n - 2n ** 31n - 1n)],
    ["a fraction", 0.5, 6, u32(0x3f000000)],
    ["true", true, 7, Buffer.from([1])],
    ["a text", "é", 8, Buffer.concat([u64(2), Buffer.from("é")])],
    ["texts", ["a"], 9, Buffer.concat([u32(8), u64(1), text("a")])],
    ["numbers", [1, 2], 9, Buffer.concat([u32(4), u64(2), u32(1), u32(2)])],
    ["numbers, one negative", [1, -2], 9, Buffer.concat([u32(5), u64(2), u32(1), u32(2 ** 32 - 2)])],
    [
      "numbers, one large",
      [-1, 2 ** 32 - 1],
      9,
      Buffer.concat([u32(11), u64(2), u64(2n ** 64n - 1n), u64(2 ** 32 - 1)]),
    ],
    ["numbers, one a fraction", [1, 0.5], 9, Buffer.concat([u32(6), u64(2), u32(0x3f800000), u32(0x3f000000)])],
    ["booleans", [true, false], 9, Buffer.concat([u32(7), u64(2), Buffer.from([1, 0])])],
    ["an empty array of a given type", { type: "int32[]", value: [] }, 9, Buffer.concat([u32(5), u64(0)])],
    ["an int8", { type: "int8", value: -2 }, 1, Buffer.from([0xfe])],
    ["a uint64 bigint", { type: "uint64", value: 2n ** 64n - 1n }, 10, u64(2n ** 64n - 1n)],
    ["a whole float64", { type: "float64", value: 1 }, 12, u64(0x3ff0000000000000n)],
  ])("of %s", async (_, value, typeId, bytes) => {
    const header = rawGguf({ entries: [entry("k", typeId, bytes)] });
    expect(await metadataOf({ k: value })).toEqual(Buffer.concat([header], alignUp(header.length, 32)));
  });

  it("are streamed from pieces of any size", async () => {
    async function* pieces() {
      for (let i = 0; i < 16; i += 3) yield Uint8Array.from({ length: Math.min(3, 16 - i) }, (_, j) => i + j);
    }
    const bytes = await written({
      metadata: {},
      tensors: [
        tensor({ data: pieces() }),
        tensor({ name: "v", data: [new Uint8Array(0), new Uint8Array(16).fill(7)] }),
      ],
    });
    expect([...bytes.subarray(-64, -48)]).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    expect([...bytes.subarray(-32, -16)]).toEqual(new Array(16).fill(7));
  });

  it("hold the alignment where it is not 32, or where it was given", async () => {
    const bytes = await written({ metadata: {}, tensors: [tensor()], alignment: 128 });
    const entries = [entry("general.alignment", 4, u32(128))];
    expect(bytes).toEqual(
      rawGguf({ entries, tensors: [tensorInfo("w", [4], 0, 0)], alignment: 128, data: Buffer.alloc(128) }),
    );
    await metadataOf({ "general.alignment": 32 });
    expect((await GgufFile.open(at("a.gguf"))).number("general.alignment")).toBe(32);
  });
});

describe("what is written is read back", () => {
  const integer = (bits: number, isSigned: boolean) =>
    isSigned
      ? fc.bigInt({ min: -(2n ** BigInt(bits - 1)), max: 2n ** BigInt(bits - 1) - 1n })
      : fc.bigInt({ min: 0n, max: 2n ** BigInt(bits) - 1n });
  const unicode = fc.string({ unit: "binary" });
  const scalars: Record<ScalarType, fc.Arbitrary<string | number | bigint | boolean>> = {
    uint8: integer(8, false).map(Number),
    int8: integer(8, true).map(Number),
    uint16: integer(16, false).map(Number),
    int16: integer(16, true).map(Number),
    uint32: integer(32, false).map(Number),
    int32: integer(32, true).map(Number),
    float32: fc.float(),
    bool: fc.boolean(),
    string: unicode,
    uint64: integer(64, false),
    int64: integer(64, true),
    float64: fc.double(),
  };
  const value = fc.constantFrom(...(Object.keys(scalars) as ScalarType[])).chain((type) =>
    fc.oneof(
      scalars[type].map((single) => ({ type, value: single })),
      fc.array(scalars[type]).map((list) => ({ type: `${type}[]` as const, value: list })),
    ),
  );
  const key = fc
    .string({ unit: "grapheme-ascii", minLength: 1 })
    .filter((k) => k !== "__proto__" && k !== "general.alignment");
  const tensorOf = (name: string, type: TensorType) =>
    fc
      .tuple(fc.integer({ min: 1, max: 3 }), fc.array(fc.integer({ min: 1, max: 5 }), { maxLength: 3 }))
      .chain(([blocks, more]) => {
        // Two-bit types need some size to be told apart; see below.
        const dims = [blocks * 128, ...(tensorTypes[type].id === 42 ? [64] : more)];
        const byteLength = bytesFor(
          tensorTypes[type],
          dims.reduce((product, length) => product * length, 1),
        )!;
        return fc
          .integer({ min: 0, max: 255 })
          .map((fill) => ({ name, type, dims, data: new Uint8Array(byteLength).fill(fill) }));
      });
  const tensors = fc
    .uniqueArray(
      unicode.filter((name) => name !== ""),
      { maxLength: 6 },
    )
    .chain((names) =>
      fc.tuple(
        ...names.map((name) =>
          fc.constantFrom(...(Object.keys(tensorTypes) as TensorType[])).chain((type) => tensorOf(name, type)),
        ),
      ),
    );

  it("for any metadata, tensors and alignment", async () => {
    const content = fc.record({
      metadata: fc.dictionary(key, value, { noNullPrototype: true }),
      tensors,
      alignment: fc.constantFrom(8, 32, 64),
    });
    const path = at("any.gguf");
    const property = fc.asyncProperty(content, async (given) => {
      await writeGguf(path, given);
      const file = await GgufFile.open(path);
      const metadata = new Map(file.metadata);
      expect(metadata.get("general.alignment")).toBe(given.alignment === 32 ? undefined : given.alignment);
      metadata.delete("general.alignment");
      expect(metadata).toEqual(new Map(Object.entries(given.metadata).map(([k, v]) => [k, v.value])));
      expect([...file.tensors.keys()]).toEqual(given.tensors.map(({ name }) => name));
      for (const { name, type, dims, data } of given.tensors) {
        expect(file.tensor(name)).toMatchObject({ type, typeName: type, dims, byteLength: data.byteLength });
        expect(Buffer.compare(await file.readTensor(name), data)).toBe(0);
      }
      const ends = [...file.tensors.values()].map(({ offset, byteLength }) => offset + byteLength);
      if (ends.length > 0) expect(file.byteLength).toBe(alignUp(Math.max(...ends), given.alignment));
    });
    await fc.assert(property, { seed: 4, numRuns: 200 });
  });
});

describe("refuses", () => {
  it.each<[string, Record<string, WriteValue>, string]>([
    ["an empty key", { "": 1 }, 'the metadata key "" cannot be written: the format allows 1 to 65535 printable ASCII'],
    ["a key of other letters", { ö: 1 }, 'the metadata key "ö" cannot be written'],
    ["an empty array without a type", { k: [] }, 'an empty array says no type; write { type: "int32[]", value: [] }'],
    ["an array of several types", { k: [1, "a"] as never }, "an array's elements must be of one type"],
    ["an integer beyond 53 bits", { k: 2 ** 53 }, "an integer is beyond 53 bits"],
    ["null", { k: null as never }, "object says no type"],
    ["a bigint without a type", { k: 1n as never }, "bigint says no type"],
    ["an unknown type", { k: { type: "uint128" as never, value: 1 } }, 'there is no type "uint128"'],
    ["one value for an array", { k: { type: "int32[]", value: 1 as never } }, "the type int32[] needs an array"],
    ["an array for one value", { k: { type: "int32", value: [1] as never } }, "the type int32 needs a single value"],
    ["256 as a uint8", { k: { type: "uint8", value: 256 } }, "256 is no uint8 (an integer from 0 to 255)"],
    ["-1 as a uint64", { k: { type: "uint64", value: -1n } }, "-1 is no uint64"],
    ["0.5 as an int32", { k: { type: "int32", value: 0.5 } }, "0.5 is no int32"],
    ["a text as a number", { k: { type: "float32", value: "1" } }, '"1" is no float32'],
    ["a number as a boolean", { k: { type: "bool", value: 1 } }, "1 is no bool"],
    ["half a surrogate pair", { k: "\ud83c" }, "half a surrogate pair"],
    [
      "another alignment than the file's",
      { "general.alignment": 64 },
      "but the file is aligned to 32; pass the number as `alignment`",
    ],
  ])("%s", async (_, metadata, message) => {
    const writing = metadataOf(metadata);
    await expect(writing).rejects.toThrow(message);
    await expect(writing).rejects.toMatchObject({ code: "invalid-argument", key: Object.keys(metadata)[0] });
  });

  it("__proto__ as a key", async () => {
    const metadata = Object.fromEntries([["__proto__", 1]]);
    await expect(metadataOf(metadata)).rejects.toMatchObject({ code: "invalid-argument", key: "__proto__" });
  });

  it.each<[string, TensorToWrite[], string]>([
    ["no name", [tensor({ name: "" })], "it needs a name"],
    ["no dimensions", [tensor({ dims: [] })], "its dimensions are []; pass 1 to 4 positive integers"],
    ["a dimension of 0", [tensor({ dims: [4, 0] })], "its dimensions are [4, 0]"],
    ["five dimensions", [tensor({ dims: [4, 1, 1, 1, 1] })], "pass 1 to 4 positive integers"],
    ["too many weights", [tensor({ dims: [2 ** 32, 2 ** 32] })], "pass 1 to 4 positive integers"],
    [
      "rows of part of a block",
      [tensor({ dims: [64, 2], type: "Q1_0" })],
      "its rows of 64 are no multiple of 128, the block of Q1_0",
    ],
    ["an unknown type", [tensor({ type: "Q4_K" as TensorType })], 'writeGguf: unknown type "Q4_K"'],
    [
      "a type-42 tensor that nobody could tell from the other layout",
      [tensor({ dims: [128], type: "Q2_0" })],
      "look alike; use PQ2_0 or F16",
    ],
    ["one name twice", [tensor(), tensor()], 'the tensor "w" stands twice'],
    [
      "too little data",
      [tensor({ data: new Uint8Array(15) })],
      'the tensor "w" has 15 bytes of data, but F32 with the dimensions [4] takes 16',
    ],
    [
      "too much data",
      [tensor({ data: [new Uint8Array(16), new Uint8Array(1)] })],
      'the tensor "w" has at least 17 bytes of data',
    ],
  ])("%s", async (_, tensors, message) => {
    const writing = written({ metadata: {}, tensors });
    await expect(writing).rejects.toThrow(message);
    await expect(writing).rejects.toMatchObject({ code: "invalid-argument" });
  });

  it.each([0, -32, 48, Number.NaN, 2 ** 22])("an alignment of %d", async (alignment) => {
    await expect(written({ metadata: {}, tensors: [], alignment })).rejects.toThrow(
      `alignment is ${alignment}; pass a power of two up to 2097152`,
    );
  });

  it("a folder that does not exist", async () => {
    await expect(writeGguf(at("none/a.gguf"), { metadata: {}, tensors: [] })).rejects.toMatchObject({
      code: "unwritable",
      path: at("none/a.gguf"),
    });
  });
});

describe("metadata of a file", () => {
  it.each([2, 3])("is copied byte for byte from version %d, with its alignment", async (version) => {
    const entries = [
      entry("a", 0, Buffer.from([7])), // a uint8
      entry("b", 12, Buffer.from(new Float64Array([0.1]).buffer)),
      entry("c", 9, u32(9), u64(1), u32(4), u64(0)), // an array of an empty array
      entry("general.alignment", 4, u32(64)),
      entry("d", 8, text("\ufeff🍁")),
    ];
    await writeFile(at("source.gguf"), rawGguf({ version: u32(version), entries }));
    const source = await GgufFile.open(at("source.gguf"));
    const data = Buffer.alloc(64, 1).fill(0, 16);
    const tensors = [tensor({ data: data.subarray(0, 16) })];
    expect(await written({ metadata: source, tensors })).toEqual(
      rawGguf({ entries, tensors: [tensorInfo("w", [4], 0, 0)], alignment: 64, data }),
    );
    await expect(written({ metadata: source, tensors, alignment: 32 })).rejects.toThrow(
      'the metadata key "general.alignment" is 64, but the file is aligned to 32',
    );
  });
});

describe("on failure", () => {
  async function* failing() {
    yield new Uint8Array(8);
    throw new Error("the source is gone");
  }

  it("nothing is left behind and an older file stays", async () => {
    const path = at("older.gguf");
    await writeFile(path, "older");
    await expect(writeGguf(path, { metadata: {}, tensors: [tensor({ data: failing() })] })).rejects.toThrow(
      "the source is gone",
    );
    await expect(writeGguf(path, { metadata: {}, tensors: [tensor({ data: [] })] })).rejects.toThrow(
      "has 0 bytes of data",
    );
    expect(await readFile(path, "utf8")).toBe("older");
    expect((await readdir(dirname(path))).filter((name) => name.includes(".tmp"))).toEqual([]);
  });
});
