import { mkdtempSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Device } from "./device.js";
import { MappedFile } from "./mapped-file.js";
import type { Matrix } from "./matrix.js";
import { firstDifference } from "./test-bits.js";
import { failure } from "./test-errors.js";
import { multiply, relativeError } from "./test-reference.js";
import { f32Tensor, randomTensor, type Tensor, weightTypes } from "./test-tensors.js";

const columns = 256;
let device: Device;
let folder: string;

beforeAll(() => {
  device = Device.open({ threads: 2 });
  folder = mkdtempSync(join(tmpdir(), "niwaki-matrix-"));
});

afterAll(async () => {
  await device.dispose();
  rmSync(folder, { recursive: true });
});

/** Rows of the table, through embed; and matrix · row, through linear. As many as there are tokens in the plan. */
async function outputs(table: Matrix, matrix: Matrix): Promise<{ rows: Float32Array; products: Float32Array }> {
  const run = async (project: boolean) => {
    const vocabulary = project ? matrix.rows : table.columns;
    using plan = device.encode({ maxRows: table.rows, maxOutputs: table.rows, vocabulary, blockSize: 16 }, (e) => {
      const x = e.buffer(table.columns);
      const selected = e.outputBuffer(table.columns);
      e.embed(table, x);
      e.selectOutputs(x, selected);
      if (!project) return selected;
      const y = e.outputBuffer(matrix.rows);
      e.linear(selected, matrix, y);
      return y;
    });
    const rows = Math.min(table.rows, vocabulary);
    const all = Int32Array.from({ length: rows }, (_, i) => i);
    const blockTable = Int32Array.from({ length: Math.ceil(rows / 16) }, (_, i) => i);
    const sequences = [{ rowCount: rows, contextLength: rows, blockTable }];
    return (await plan.run({ tokens: all, sequences, outputs: all, logits: true })).logits!;
  };
  return { rows: await run(false), products: await run(true) };
}

/** matrix · row in plain floating point, of the first rows. */
function products(matrix: Tensor, inputs: Tensor, rows: number): number[] {
  return Array.from({ length: rows }, (_, r) =>
    multiply(matrix, [...inputs.weights.subarray(r * inputs.columns, (r + 1) * inputs.columns)]),
  ).flat();
}

describe("Matrix", () => {
  for (const type of weightTypes) {
    it(`of ${type}: exact rows, and products within the activations' rounding, from bytes and from a file`, async () => {
      // 256 rows: embed gives rows as wide as the vocabulary
      const tensor = randomTensor("w", type, columns, columns, 7);
      const inputs = randomTensor("x", "F32", columns, columns, 8);
      using x = await device.loadMatrix(inputs);
      using fromBytes = await device.loadMatrix(tensor);
      expect([fromBytes.rows, fromBytes.columns]).toEqual([columns, columns]);
      expect(fromBytes.byteLength).toBeGreaterThanOrEqual(tensor.data.length);
      const embedded = await outputs(fromBytes, x);
      expect(firstDifference(embedded.rows, tensor.weights)).toBe(-1);
      const multiplied = await outputs(x, fromBytes);
      const expected = products(tensor, inputs, 24);
      expect(relativeError(multiplied.products, expected)).toBeLessThan(
        type.startsWith("Q1") || type.startsWith("Q2") ? 5e-3 : 1e-5,
      );

      const offset = 96;
      const path = join(folder, type);
      writeFileSync(path, Buffer.concat([Buffer.alloc(offset), tensor.data]));
      using file = MappedFile.open(path);
      using fromFile = await device.loadMatrix({ ...tensor, data: { file, offset } });
      expect(fromFile.byteLength).toBe(fromBytes.byteLength);
      expect(firstDifference((await outputs(x, fromFile)).products, multiplied.products)).toBe(-1);
    });
  }

  it("stacks tensors of different types", async () => {
    const inputs = randomTensor("x", "F32", columns, columns, 9);
    const stack = [
      randomTensor("a", "Q1_0", 170, columns, 10),
      randomTensor("b", "Q2_0", 3, columns, 11),
      randomTensor("c", "F16", 83, columns, 12),
    ];
    using x = await device.loadMatrix(inputs);
    using stacked = await device.loadMatrix(stack);
    expect([stacked.rows, stacked.columns]).toEqual([columns, columns]);
    const { products: together } = await outputs(x, stacked);
    let first = 0;
    for (const tensor of stack) {
      using alone = await device.loadMatrix(tensor);
      const { products: apart } = await outputs(x, alone);
      for (let r = 0; r < tensor.rows; r++) {
        const rows = together.subarray(r * columns + first, r * columns + first + tensor.rows);
        expect(firstDifference(rows, apart.subarray(r * tensor.rows, (r + 1) * tensor.rows))).toBe(-1);
      }
      first += tensor.rows;
    }
  });

  it("copies bytes at the call", async () => {
    const tensor = randomTensor("w", "F32", columns, columns, 13);
    const data = tensor.data.slice();
    const loading = device.loadMatrix({ ...tensor, data });
    data.fill(0);
    using matrix = await loading;
    expect(firstDifference((await outputs(matrix, matrix)).rows, tensor.weights)).toBe(-1);
  });

  it("names the argument, the value and what is allowed", async () => {
    const tensor = randomTensor("blk.0.attn_q.weight", "Q1_0", 2, columns, 1);
    const cases: [object, string][] = [
      [{ name: "" }, 'sources.name is "": it must be a string that is not empty'],
      [
        { type: "Q5_0" },
        'sources (blk.0.attn_q.weight).type is "Q5_0": it must be one of F32, F16, BF16, Q8_0, Q4_0, Q1_0, Q2_0, Q2_0_G128',
      ],
      [{ rows: 0 }, "sources (blk.0.attn_q.weight).rows is 0: it must be an integer from 1 to 2147483647"],
      [
        { columns: 200 },
        "sources (blk.0.attn_q.weight).columns is 200: rows of type Q1_0 are multiples of 128 weights",
      ],
      [
        { rows: 3 },
        "sources (blk.0.attn_q.weight).data is a Uint8Array of length 72: 3 x 256 weights of type Q1_0 take 108 bytes",
      ],
      [
        { data: { file: {}, offset: 0 } },
        "sources (blk.0.attn_q.weight).data.file is an Object: it must be a MappedFile",
      ],
    ];
    for (const [change, message] of cases) {
      const error = await failure("invalid-argument", () => device.loadMatrix({ ...tensor, ...change }));
      expect(error.message).toBe(message);
    }
    await failure("invalid-argument", () => device.loadMatrix([]));
    const uneven = [tensor, randomTensor("k", "Q1_0", 2, 128, 1)];
    const error = await failure("invalid-argument", () => device.loadMatrix(uneven));
    expect(error.message).toBe(
      "sources[1].columns is 128: the columns of blk.0.attn_q.weight, first in the stack, are 256",
    );
  });

  it("checks ranges of a file against its true size, before and after it was opened", async () => {
    const tensor = randomTensor("w", "F32", 4, 16, 1);
    const path = join(folder, "short");
    writeFileSync(path, tensor.data);
    using file = MappedFile.open(path);
    expect([file.path, file.byteLength]).toEqual([path, 256]);
    const error = await failure("invalid-argument", () => device.loadMatrix({ ...tensor, data: { file, offset: 4 } }));
    expect(error.message).toBe(
      `sources (w).data.offset is 4: 4 x 16 weights of type F32 take 256 bytes, and ${path} has 256`,
    );
    truncateSync(path, 100);
    const shrunk = await failure("io", () => device.loadMatrix({ ...tensor, data: { file, offset: 0 } }));
    expect(shrunk.message).toContain(path);
    file.dispose();
    await failure("disposed", () => device.loadMatrix({ ...tensor, data: { file, offset: 0 } }));
  });

  it("says why a file cannot be opened", async () => {
    const path = join(folder, "absent");
    const error = await failure("io", () => MappedFile.open(path));
    expect(error.message).toContain(path);
    expect(error.message).toMatch(/no such file/i);
    await failure("invalid-argument", () => MappedFile.open(""));
  });

  it("may lose its file while it is loading", async () => {
    const tensor = randomTensor("w", "F32", columns, columns, 14);
    const path = join(folder, "gone");
    writeFileSync(path, tensor.data);
    const file = MappedFile.open(path);
    const loading = device.loadMatrix({ ...tensor, data: { file, offset: 0 } });
    file.dispose();
    using matrix = await loading;
    expect(firstDifference((await outputs(matrix, matrix)).rows, tensor.weights)).toBe(-1);
  });

  it("refuses weights and scales that are not finite, naming the tensor", async () => {
    for (const type of weightTypes) {
      const tensor = randomTensor(`bad.${type}`, type, 4, columns, 1);
      const bytes = tensor.data.length / 4;
      const view = new DataView(tensor.data.buffer);
      if (type === "F32") view.setFloat32(3 * bytes, Number.NaN, true);
      else view.setUint16(3 * bytes, type === "BF16" ? 0x7f80 : 0x7c01, true);
      const error = await failure("non-finite", () =>
        device.loadMatrix([randomTensor("good", type, 1, columns, 2), tensor]),
      );
      expect(error.message).toContain(`bad.${type}`);
    }
  });
});

describe("Vector", () => {
  it("is one finite row of F32", async () => {
    expect(device.loadVector(f32Tensor("norm", 1, 3, Float32Array.of(1, 2, 3))).length).toBe(3);
    const nan = f32Tensor("blk.1.attn_norm", 1, 3, Float32Array.of(1, Number.NaN, 3));
    expect((await failure("non-finite", () => device.loadVector(nan))).message).toContain("blk.1.attn_norm");
    const half = randomTensor("norm", "F16", 1, 4, 1);
    expect((await failure("invalid-argument", () => device.loadVector(half))).argument).toBe("source.type");
    const square = randomTensor("norm", "F32", 2, 2, 1);
    expect((await failure("invalid-argument", () => device.loadVector(square))).argument).toBe("source.rows");
  });
});
