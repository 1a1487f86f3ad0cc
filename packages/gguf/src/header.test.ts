import { describe, expect, it } from "vitest";
import { parseHeader } from "./header.js";
import { MoreBytesNeeded } from "./header-cursor.js";
import { entry, rawGguf, tensorInfo, text, typeIds, u32, u64 } from "./test-raw-gguf.js";

const { uint32, string, array } = typeIds;

function parse(bytes: Buffer) {
  return parseHeader(bytes, bytes.length, "model.gguf");
}

describe("values", () => {
  it("reads every type", async () => {
    const f32 = (x: number) => Buffer.from(new Float32Array([x]).buffer);
    const { metadata } = await parse(
      rawGguf({
        entries: [
          entry("u8", 0, Buffer.from([200])),
          entry("i8", 1, Buffer.from([200])),
          entry("u16", 2, Buffer.from([0x34, 0xf2])),
          entry("i16", 3, Buffer.from([0x34, 0xf2])),
          entry("u32", 4, u32(4294967295)),
          entry("i32", 5, u32(4294967295)),
          entry("f32", 6, f32(0.1)),
          entry("bool", 7, Buffer.from([1])),
          entry("string", 8, text("ein Ahorn 🍁")),
          entry("u64", 10, u64(2n ** 64n - 1n)),
          entry("i64", 11, u64(2n ** 64n - 1n)),
          entry("f64", 12, Buffer.from(new Float64Array([0.1]).buffer)),
          entry("version", 4, u32(7)),
        ],
      }),
    );
    expect([...metadata]).toEqual([
      ["u8", 200],
      ["i8", -56],
      ["u16", 0xf234],
      ["i16", 0xf234 - 65536],
      ["u32", 4294967295],
      ["i32", -1],
      ["f32", Math.fround(0.1)],
      ["bool", true],
      ["string", "ein Ahorn 🍁"],
      ["u64", 2n ** 64n - 1n],
      ["i64", -1n],
      ["f64", 0.1],
      ["version", 7],
    ]);
  });

  it("reads arrays of every type", async () => {
    const list = (type: number, count: number, ...bytes: Buffer[]) => [u32(type), u64(count), ...bytes];
    const { metadata } = await parse(
      rawGguf({
        entries: [
          entry("u8", array, ...list(0, 2, Buffer.from([1, 255]))),
          entry("i8", array, ...list(1, 2, Buffer.from([1, 255]))),
          entry("u16", array, ...list(2, 1, Buffer.from([0xff, 0xff]))),
          entry("i16", array, ...list(3, 1, Buffer.from([0xff, 0xff]))),
          entry("u32", array, ...list(4, 2, u32(7), u32(4294967295))),
          entry("i32", array, ...list(5, 2, u32(7), u32(4294967295))),
          entry("f32", array, ...list(6, 1, Buffer.from([0, 0, 0x80, 0x3f]))),
          entry("bool", array, ...list(7, 3, Buffer.from([1, 0, 1]))),
          entry("string", array, ...list(8, 3, text("Ġa"), text(""), text("\ufeffb"))),
          entry("nested", array, ...list(9, 2, ...list(4, 1, u32(5)), ...list(8, 1, text("x")))),
          entry("u64", array, ...list(10, 1, u64(2n ** 64n - 1n))),
          entry("i64", array, ...list(11, 1, u64(2n ** 64n - 1n))),
          entry("f64", array, ...list(12, 1, Buffer.from(new Float64Array([0.1]).buffer))),
          entry("empty", array, ...list(8, 0)),
        ],
      }),
    );
    expect([...metadata]).toEqual([
      ["u8", [1, 255]],
      ["i8", [1, -1]],
      ["u16", [65535]],
      ["i16", [-1]],
      ["u32", [7, 4294967295]],
      ["i32", [7, -1]],
      ["f32", [1]],
      ["bool", [true, false, true]],
      ["string", ["Ġa", "", "\ufeffb"]],
      ["nested", [[5], ["x"]]],
      ["u64", [2n ** 64n - 1n]],
      ["i64", [-1n]],
      ["f64", [0.1]],
      ["empty", []],
    ]);
  });

  it("keeps a byte-order mark and U+FFFD in a text", async () => {
    const { metadata } = await parse(rawGguf({ entries: [entry("template", string, text("\ufeffa\ufffd"))] }));
    expect(metadata.get("template")).toBe("\ufeffa\ufffd");
  });

  it("reads version 2", async () => {
    const header = await parse(rawGguf({ version: u32(2), entries: [entry("a", uint32, u32(1))] }));
    expect(header.version).toBe(2);
    expect(header.metadata.get("a")).toBe(1);
  });

  it("asks for more bytes of a file that goes on", async () => {
    const whole = rawGguf({ entries: [entry("some.key", string, text("a longer value"))] });
    const lengths = new Set<number>();
    for (let length = 0; length < whole.length; length++) {
      const error = await parseHeader(whole.subarray(0, length), whole.length, "x").catch((reason: unknown) => reason);
      expect(error).toBeInstanceOf(MoreBytesNeeded);
      lengths.add((error as MoreBytesNeeded).end);
    }
    // magic, version, two counts, key length, key, type, text length, text
    expect([...lengths]).toEqual([4, 8, 16, 24, 32, 40, 44, 52, 66]);
  });
});

describe("tensors", () => {
  it("have absolute offsets and sizes, in file order, whatever the order of their data", async () => {
    const { tensors } = await parse(
      rawGguf({
        tensors: [tensorInfo("b", [128, 2], 41, 32), tensorInfo("a", [2, 3], 0, 0), tensorInfo("k", [256], 12, 96)],
        data: Buffer.alloc(96 + 144),
      }),
    );
    expect([...tensors.values()]).toEqual([
      { name: "b", dims: [128, 2], type: "Q1_0", typeId: 41, typeName: "Q1_0", offset: 160 + 32, byteLength: 36 },
      { name: "a", dims: [2, 3], type: "F32", typeId: 0, typeName: "F32", offset: 160, byteLength: 24 },
      { name: "k", dims: [256], type: null, typeId: 12, typeName: "Q4_K", offset: 160 + 96, byteLength: 144 },
    ]);
  });

  it("of an unknown type take the room they have", async () => {
    const { tensors } = await parse(
      rawGguf({ tensors: [tensorInfo("a", [7], 99, 0), tensorInfo("b", [7], 4, 64)], data: Buffer.alloc(71) }),
    );
    expect([...tensors.values()]).toEqual([
      { name: "a", dims: [7], type: null, typeId: 99, typeName: "unknown type 99", offset: 96, byteLength: 64 },
      { name: "b", dims: [7], type: null, typeId: 4, typeName: "unknown type 4", offset: 160, byteLength: 7 },
    ]);
  });

  it("keep to the file's own alignment", async () => {
    const { alignment, tensors } = await parse(
      rawGguf({
        entries: [entry("general.alignment", uint32, u32(256))],
        tensors: [tensorInfo("a", [1], 0, 0), tensorInfo("b", [1], 0, 256)],
        alignment: 256,
        data: Buffer.alloc(260),
      }),
    );
    expect(alignment).toBe(256);
    expect([...tensors.values()].map(({ offset }) => offset)).toEqual([256, 512]);
  });

  // 128 × 64 weights: 2304 bytes in blocks of 64, 2176 in blocks of 128; all multiples of 32
  it.each([
    ["blocks of 64, at the end", 2304, [], "Q2_0"],
    ["blocks of 128, at the end", 2176, [], "Q2_0_G128"],
    ["blocks of 64, before another", 2304 + 4, [tensorInfo("z", [1], 0, 2304)], "Q2_0"],
    ["blocks of 128, before another", 2176 + 4, [tensorInfo("z", [1], 0, 2176)], "Q2_0_G128"],
  ] as const)("of type 42 with %s", async (_, size, more, type) => {
    const { tensors } = await parse(
      rawGguf({ tensors: [tensorInfo("w", [128, 64], 42, 0), ...more], data: Buffer.alloc(size) }),
    );
    expect(tensors.get("w")).toMatchObject({ type, typeName: type, typeId: 42 });
  });

  it.each([
    ["padded", 96, "Q2_0"],
    ["unpadded at the end of the file", 90, "Q2_0"],
  ] as const)("of type 42 with rows that only blocks of 64 divide, %s", async (_, size, type) => {
    const { tensors } = await parse(rawGguf({ tensors: [tensorInfo("w", [64, 5], 42, 0)], data: Buffer.alloc(size) }));
    expect(tensors.get("w")).toMatchObject({ type, byteLength: 90 });
  });

  it.each([
    ["unpadded blocks of 64", 36, "Q2_0"],
    ["unpadded blocks of 128", 34, "Q2_0_G128"],
  ] as const)("of type 42, tiny, at the end of the file: %s", async (_, size, type) => {
    const { tensors } = await parse(rawGguf({ tensors: [tensorInfo("w", [128], 42, 0)], data: Buffer.alloc(size) }));
    expect(tensors.get("w")).toMatchObject({ type, byteLength: size });
  });

  it("of type 142 are PQ2_0", async () => {
    const { tensors } = await parse(rawGguf({ tensors: [tensorInfo("w", [128], 142, 0)], data: Buffer.alloc(64) }));
    expect(tensors.get("w")).toMatchObject({ type: "PQ2_0", typeId: 142, byteLength: 34 });
  });
});
