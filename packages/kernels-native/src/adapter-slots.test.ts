import { rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { AdapterSlots, AdapterSlotsOptions, AdapterTarget, AdapterType } from "./adapter-slots.js";
import { cpuTiers, Device } from "./device.js";
import { MappedFile } from "./mapped-file.js";
import type { AdapterUse } from "./step.js";
import { mapTensors, mergedTensor, randomAdapter, randomMagnitude, tinyTensors } from "./test-adapters.js";
import { firstDifference } from "./test-bits.js";
import { failure } from "./test-errors.js";
import { referenceLogits, relativeError } from "./test-reference.js";
import { f32Tensor, type Tensor } from "./test-tensors.js";
import { TinyModel, tinyWeights } from "./test-tiny-model.js";

const weights = tinyWeights("F32");
const tensors = tinyTensors(weights);
const targets = tensors.map(({ name }) => name);
const tokens = [5, 17, 3, 99, 42, 8, 8, 61];

let device: Device;
let model: TinyModel;
beforeAll(async () => {
  device = Device.open({ threads: 2 });
  model = await TinyModel.load(device, weights);
});
afterAll(async () => {
  model.dispose();
  await device.dispose();
});

async function logitsOf(of: TinyModel, adapterSlots: AdapterSlots, adapters: AdapterUse[]): Promise<Float32Array> {
  const { logits } = await of.plan.run({
    tokens: Int32Array.from(tokens),
    sequences: [{ rowCount: 8, contextLength: 8, blockTable: Int32Array.of(2), adapters }],
    outputs: Int32Array.from(tokens.keys()),
    adapterSlots,
    logits: true,
  });
  return logits!;
}

describe("adapters in a step", () => {
  it("are what their matrices merged into the weights would be", async () => {
    for (const [type, bound] of [
      ["f16", 1e-4],
      ["i8", 3e-2],
    ] as [AdapterType, number][]) {
      using slots = await device.createAdapterSlots(model.plan, { slots: 3, maxRank: 8, type, targets });
      const [first, second] = [randomAdapter(tensors, 8, 1), randomAdapter(tensors, 3, 2)];
      await Promise.all([slots.load(0, first), slots.load(2, second)]);
      const of = (adapter: typeof first, name: string) => adapter.find(({ tensor }) => tensor === name);
      const expected = mapTensors(weights, (tensor) =>
        mergedTensor(tensor, [
          [of(first, tensor.name), 0.5],
          [of(second, tensor.name), -1],
        ]),
      );
      const actual = await logitsOf(model, slots, [
        { slot: 0, weight: 0.5 },
        { slot: 2, weight: -1 },
      ]);
      const base = referenceLogits(weights, tokens).flat();
      const merged = referenceLogits(expected, tokens).flat();
      expect(relativeError(actual, merged)).toBeLessThan(bound);
      expect(relativeError(base, merged)).toBeGreaterThan(0.1);
    }
  });

  it("scale rows as DoRA does, by norms computed here", async () => {
    using slots = await device.createAdapterSlots(model.plan, { slots: 1, maxRank: 4, type: "f16", targets });
    const adapter = randomAdapter(tensors, 4, 3);
    const magnitudes = new Map(adapter.map(({ tensor }, i) => [tensor, randomMagnitude(rowsOf(tensor), i)]));
    const scaled = await Promise.all(
      adapter.map(async (target) => {
        const norms = await slots.rowNorms(target);
        return { ...target, rowScale: norms.map((norm, r) => magnitudes.get(target.tensor)![r]! / norm) };
      }),
    );
    await slots.load(0, scaled);
    // m (W + s B A) / ||W + s B A||: rows of length m
    const expected = mapTensors(weights, (tensor) => {
      const target = adapter.find((t) => t.tensor === tensor.name);
      return target === undefined
        ? tensor
        : withRowNorms(mergedTensor(tensor, [[target, 1]]), magnitudes.get(tensor.name)!);
    });
    const actual = await logitsOf(model, slots, [{ slot: 0, weight: 1 }]);
    expect(relativeError(actual, referenceLogits(expected, tokens).flat())).toBeLessThan(1e-4);
  });

  it("have the same bits alone, beside others, in chunks, in every tier and from a file", async () => {
    const q1 = tinyWeights("Q1_0");
    const path = join(tmpdir(), `niwaki-adapter-${process.pid}.bin`);
    const adapters = [randomAdapter(tensors, 8, 4), randomAdapter(tensors, 5, 5)];
    const target = adapters[0]![0]!;
    writeFileSync(path, Buffer.concat([Buffer.alloc(3), target.a.data as Uint8Array]));
    let expected: Float32Array | undefined;
    try {
      for (const tier of cpuTiers()) {
        await using other = Device.open({ threads: 1, tier });
        using tiny = await TinyModel.load(other, q1);
        using file = MappedFile.open(path);
        using slots = await other.createAdapterSlots(tiny.plan, { slots: 2, maxRank: 8, type: "f16", targets });
        const fromFile = { ...target, a: { type: "F16", data: { file, offset: 3 } } } satisfies AdapterTarget;
        await slots.load(1, [fromFile, ...adapters[0]!.slice(1)]);
        await slots.load(0, adapters[1]!);
        const alone = await logitsOf(tiny, slots, [{ slot: 1, weight: 1 }]);
        expected ??= alone;
        expect(firstDifference(alone, expected)).toBe(-1);
        const chunks: Float32Array[] = [];
        for (const [from, to] of [
          [0, 3],
          [3, 4],
          [4, 8],
        ] as const) {
          const { logits } = await tiny.plan.run({
            tokens: Int32Array.from([...tokens.slice(from, to), 1, 2, 3]),
            sequences: [
              {
                rowCount: to - from,
                contextLength: to,
                blockTable: Int32Array.of(7),
                adapters: [{ slot: 1, weight: 1 }],
              },
              { rowCount: 2, contextLength: 2, blockTable: Int32Array.of(8), adapters: [{ slot: 0, weight: 2 }] },
              { rowCount: 1, contextLength: 1, blockTable: Int32Array.of(9) },
            ],
            outputs: Int32Array.from({ length: to - from }, (_, i) => i),
            adapterSlots: slots,
            logits: true,
          });
          chunks.push(logits!);
        }
        const joined = Float32Array.from(chunks.flatMap((chunk) => [...chunk]));
        expect(firstDifference(joined, expected)).toBe(-1);
      }
    } finally {
      rmSync(path);
    }
  });
});

describe("slots", () => {
  const options: AdapterSlotsOptions = { slots: 2, maxRank: 8, type: "f16", targets };

  it("name tensors of their plan", async () => {
    const message = async (change: Partial<Record<keyof AdapterSlotsOptions, unknown>>) =>
      (
        await failure("invalid-argument", () =>
          device.createAdapterSlots(model.plan, { ...options, ...change } as AdapterSlotsOptions),
        )
      ).message;
    expect(await message({ slots: 0 })).toBe("options.slots is 0: it must be an integer from 1 to 4096");
    expect(await message({ maxRank: 1.5 })).toBe("options.maxRank is 1.5: it must be an integer from 1 to 4096");
    expect(await message({ type: "f32" })).toBe('options.type is "f32": it must be "f16" or "i8"');
    expect(await message({ targets: [] })).toMatch(/^options\.targets is an array of length 0: /);
    expect(await message({ targets: [""] })).toMatch(/^options\.targets\[0\] is "": /);
    expect(await message({ targets: ["token_embd"] })).toContain("no tensor called token_embd");
    expect(await message({ targets: ["output", "output"] })).toContain("output is named twice");
    await failure("invalid-argument", () => device.createAdapterSlots({} as never, options));
  });

  it("refuse what does not fit and keep what they hold", async () => {
    using slots = await device.createAdapterSlots(model.plan, options);
    expect(slots).toMatchObject({ slots: 2, maxRank: 8, type: "f16" });
    const adapter = randomAdapter(tensors, 8, 6);
    await slots.load(0, adapter);
    const before = await logitsOf(model, slots, [{ slot: 0, weight: 1 }]);
    const good = adapter[0]!;
    const of = `adapter[0] (${good.tensor})`;
    const cases: [Partial<Record<keyof AdapterTarget, unknown>>, string][] = [
      [{ tensor: "output" }, 'adapter[0].tensor is "output": it must be one of the targets of the slots'],
      [{ rank: 9 }, `${of}.rank is 9: it must be an integer from 1 to 8`],
      [{ scale: 1e39 }, `${of}.scale is 1e+39: it must be finite`],
      [{ a: { type: "Q8_0", data: good.a.data } }, `${of}.a.type is "Q8_0": it must be "F32", "F16" or "BF16"`],
      [
        { a: { type: "F32", data: good.a.data } },
        `${of}.a.data is a Uint8Array of length 2048: 8 x 128 values of type F32 take 4096 bytes`,
      ],
      [{ b: good.a }, `${of}.b.data is a Uint8Array of length 2048: 64 x 8 values of type F16 take 1024 bytes`],
      [{ rowScale: new Float32Array(3) }, `${of}.rowScale is a Float32Array of length 3: it must be a Float32Array`],
    ];
    for (const [change, message] of cases) {
      const error = await failure("invalid-argument", () =>
        slots.load(0, [{ ...good, ...change } as AdapterTarget, ...adapter.slice(1)]),
      );
      expect(error.message).toContain(message);
    }
    const spoiled = Uint8Array.from(good.b.data as Uint8Array);
    spoiled.set([0x00, 0x7c], 4);
    const error = await failure("non-finite", () => slots.load(0, [{ ...good, b: { type: "F16", data: spoiled } }]));
    expect(error.message).toContain(`${good.tensor}: B`);
    await failure("non-finite", () => slots.rowNorms({ ...good, b: { type: "F16", data: spoiled } }));
    expect((await failure("invalid-argument", () => slots.load(2, adapter))).message).toBe(
      "slot is 2: it must be an integer from 0 to 1",
    );
    await failure("invalid-argument", () => slots.load(0, []));
    const after = await logitsOf(model, slots, [{ slot: 0, weight: 1 }]);
    expect(firstDifference(after, before)).toBe(-1);
    await slots.clear(0);
    expect(
      (await failure("invalid-argument", () => logitsOf(model, slots, [{ slot: 0, weight: 1 }]))).message,
    ).toContain("slot 0, which is empty");
  });

  it("are named by steps of their plan", async () => {
    using slots = await device.createAdapterSlots(model.plan, options);
    const message = async (adapters: unknown, adapterSlots: unknown = slots) =>
      (await failure("invalid-argument", () => logitsOf(model, adapterSlots as AdapterSlots, adapters as AdapterUse[])))
        .message;
    const of = "step.sequences[0].adapters";
    expect(await message([{ slot: 2, weight: 1 }])).toBe(`${of}[0].slot is 2: it must be an integer from 0 to 1`);
    expect(await message([{ slot: 0, weight: Number.NaN }])).toBe(`${of}[0].weight is NaN: it must be finite`);
    expect(await message({})).toBe(`${of} is an Object: it must be an array`);
    expect(await message(Array(17).fill({ slot: 0, weight: 1 }))).toContain("a mix has at most 16 adapters");
    expect(await message([], 5)).toBe("step.adapterSlots is 5: it must be an AdapterSlots");
    const { plan } = model;
    const without = () =>
      plan.run({
        tokens: Int32Array.of(1),
        sequences: [
          { rowCount: 1, contextLength: 1, blockTable: Int32Array.of(0), adapters: [{ slot: 0, weight: 1 }] },
        ],
        outputs: Int32Array.of(0),
      });
    expect((await failure("invalid-argument", without)).message).toContain("the step has no adapterSlots");
    using other = await TinyModel.load(device, weights);
    expect((await failure("invalid-argument", () => logitsOf(other, slots, []))).message).toContain("another plan");
  });

  it("live until they are disposed", async () => {
    const slots = await device.createAdapterSlots(model.plan, options);
    expect(slots.byteLength).toBeGreaterThan(0);
    slots.dispose();
    slots.dispose();
    await failure("disposed", () => slots.clear(0));
    await failure("disposed", () => logitsOf(model, slots, []));
  });
});

function rowsOf(name: string): number {
  return tensors.find((tensor) => tensor.name === name)!.rows;
}

function withRowNorms({ name, rows, columns, weights: values }: Tensor, norms: Float32Array): Tensor {
  const scaled = Float32Array.from(values);
  for (let r = 0; r < rows; r++) {
    const row = scaled.subarray(r * columns, (r + 1) * columns);
    const norm = Math.sqrt(row.reduce((sum, w) => sum + w * w, 0));
    for (let c = 0; c < columns; c++) row[c]! *= norms[r]! / norm;
  }
  return f32Tensor(name, rows, columns, scaled);
}
