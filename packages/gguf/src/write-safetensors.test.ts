import { readdir, readFile } from "node:fs/promises";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { SafetensorsFile } from "./safetensors-file.js";
import { temporaryFolder } from "./test-folder.js";
import { writeSafetensors } from "./write-safetensors.js";

const at = temporaryFolder();

describe("writeSafetensors", () => {
  it("writes the bytes that the format says, data at a multiple of eight", async () => {
    const path = at("tiny.safetensors");
    await writeSafetensors(path, {
      metadata: { format: "pt" },
      tensors: [{ name: "w", dtype: "U8", shape: [3], data: Uint8Array.of(1, 2, 3) }],
    });
    const bytes = await readFile(path);
    const length = Number(bytes.readBigUInt64LE());
    expect(length % 8).toBe(0);
    expect(JSON.parse(bytes.toString("utf8", 8, 8 + length))).toEqual({
      __metadata__: { format: "pt" },
      w: { dtype: "U8", shape: [3], data_offsets: [0, 3] },
    });
    expect([...bytes.subarray(8 + length)]).toEqual([1, 2, 3]);
  });

  it("gives back what was written, whatever it is", async () => {
    const path = at("any.safetensors");
    const tensor = fc
      .record({
        rows: fc.nat(5),
        columns: fc.nat(5),
        dtype: fc.constantFrom("F32" as const, "F16" as const, "U8" as const),
      })
      .chain(({ rows, columns, dtype }) => {
        const size = rows * columns * { F32: 4, F16: 2, U8: 1 }[dtype];
        const data = fc.uint8Array({ minLength: size, maxLength: size });
        return fc.record({ dtype: fc.constant(dtype), shape: fc.constant([rows, columns]), data });
      });
    const name = fc
      .string({ unit: "grapheme" })
      .filter((text) => !text.startsWith("__") && !/\p{Surrogate}/u.test(text));
    await fc.assert(
      fc.asyncProperty(fc.dictionary(name, tensor, { noNullPrototype: true }), async (contents) => {
        const tensors = Object.entries(contents).map(([key, value]) => ({ name: key, ...value }));
        await writeSafetensors(path, { tensors });
        const file = await SafetensorsFile.open(path);
        expect([...file.tensors.keys()]).toEqual(tensors.map((written) => written.name));
        for (const { name: key, dtype, shape, data } of tensors) {
          expect(file.tensor(key)).toMatchObject({ dtype, shape });
          expect(await file.readTensor(key)).toEqual(data);
        }
      }),
      { seed: 5, numRuns: 100 },
    );
  });

  it("takes data in pieces", async () => {
    const path = at("pieces.safetensors");
    async function* pieces() {
      yield Uint8Array.of(1);
      yield Uint8Array.of(2, 3, 4);
    }
    await writeSafetensors(path, { tensors: [{ name: "w", dtype: "F32", shape: [1], data: pieces() }] });
    expect([...(await (await SafetensorsFile.open(path)).readTensor("w"))]).toEqual([1, 2, 3, 4]);
  });

  it.each([
    ["too few bytes", [{ name: "w", dtype: "F32" as const, shape: [2], data: new Uint8Array(7) }]],
    ["too many bytes", [{ name: "w", dtype: "F32" as const, shape: [2], data: new Uint8Array(9) }]],
    ["a type that is none", [{ name: "w", dtype: "Q1_0" as "F32", shape: [2], data: new Uint8Array(8) }]],
    ["a shape that is none", [{ name: "w", dtype: "F32" as const, shape: [0.5], data: new Uint8Array(2) }]],
    ["a reserved name", [{ name: "__metadata__", dtype: "U8" as const, shape: [], data: new Uint8Array(1) }]],
    ["half a surrogate pair", [{ name: "\ud800", dtype: "U8" as const, shape: [], data: new Uint8Array(1) }]],
    ["a name twice", [0, 1].map(() => ({ name: "w", dtype: "U8" as const, shape: [], data: new Uint8Array(1) }))],
  ])("refuses %s and leaves no file behind", async (_, tensors) => {
    await expect(writeSafetensors(at("refused.safetensors"), { tensors })).rejects.toMatchObject({
      code: "invalid-argument",
      tensor: tensors[0]!.name,
    });
    expect((await readdir(at(""))).filter((file) => file.includes("refused"))).toEqual([]);
  });
});
