import { dequantize, quantize } from "@niwaki/gguf";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { LoraAdapter } from "./lora-adapter.js";
import { loraConfig } from "./lora-config.js";
import { matrixValues } from "./lora-target.js";
import { type LoraModule, loraModules } from "./modules.js";
import { requantizeMerged } from "./requantize.js";
import { estimateAdapter, slotsBytes } from "./sizes.js";
import { randomAdapter, randomValues, tinyShape } from "./test-adapters.js";

const zeros = ({ rank, inputs, outputs }: { rank: number; inputs: number; outputs: number }) => ({
  a: new Float32Array(rank * inputs),
  b: new Float32Array(outputs * rank),
});

describe("create", () => {
  test("A is uniform in ±1/√in, B is zero, and the seed decides", () => {
    const shape = { ...tinyShape, modules: { ...tinyShape.modules, q_proj: [400, 16] as const } };
    const adapter = LoraAdapter.create(loraConfig({ rank: 50 }), shape, 7);
    const a = matrixValues(adapter.target(0, "q_proj")!.a);
    expect(a).toHaveLength(50 * 400);
    const bound = 1 / Math.sqrt(400);
    expect(Math.max(...a)).toBeLessThanOrEqual(bound);
    expect(Math.max(...a)).toBeGreaterThan(0.999 * bound);
    expect(Math.min(...a)).toBeLessThan(-0.999 * bound);
    const mean = a.reduce((sum, value) => sum + value, 0) / a.length;
    const variance = a.reduce((sum, value) => sum + value * value, 0) / a.length;
    expect(Math.abs(mean)).toBeLessThan(0.02 * bound);
    expect(Math.abs(variance / (bound ** 2 / 3) - 1)).toBeLessThan(0.03);
    for (const { b } of adapter) expect(b.data.every((byte) => byte === 0)).toBe(true);

    const again = LoraAdapter.create(loraConfig({ rank: 50 }), shape, 7);
    expect(again.targets).toEqual(adapter.targets);
    expect(LoraAdapter.create(loraConfig({ rank: 50 }), shape, 8).targets).not.toEqual(adapter.targets);
  });

  test("a new DoRA needs the base", () => {
    expect(() => LoraAdapter.create(loraConfig({ useDora: true }), tinyShape, 1)).toThrow(
      expect.objectContaining({ code: "needs-weights" }),
    );
  });
});

describe("from", () => {
  test.each([
    ["wrong-shape", { a: new Float32Array(3) }],
    ["wrong-type", { a: { type: "Q8_0" as "F32", data: new Uint8Array(4) } }],
    ["not-finite", { a: Float32Array.from({ length: 96 }, (_, i) => (i === 40 ? Number.NaN : 0)) }],
    ["not-finite", { a: { type: "F16" as const, data: quantize("F16", new Float32Array(96).fill(1e9)) } }],
    ["not-finite", { a: { type: "BF16" as const, data: quantize("BF16", new Float32Array(96).fill(-Infinity)) } }],
  ])("refuses weights: %s", (code, weights) => {
    const config = loraConfig({ targetModules: ["layers.1.self_attn.q_proj"] });
    expect(() => LoraAdapter.from(config, tinyShape, (planned) => ({ ...zeros(planned), ...weights }))).toThrow(
      expect.objectContaining({ code, tensor: "blk.1.attn_q.weight.lora_a" }),
    );
  });

  test("refuses a magnitude too many, and one missing", () => {
    const from = (useDora: boolean, magnitude?: Float32Array) =>
      LoraAdapter.from(loraConfig({ useDora, targetModules: ["k_proj"] }), tinyShape, (planned) => ({
        ...zeros(planned),
        magnitude,
      }));
    expect(() => from(false, new Float32Array(4))).toThrow(expect.objectContaining({ code: "unknown-tensor" }));
    expect(() => from(true)).toThrow(expect.objectContaining({ code: "missing-tensor" }));
    expect(() => from(true, new Float32Array(5))).toThrow(expect.objectContaining({ code: "wrong-shape" }));
    expect(from(true, new Float32Array(4)).target(2, "k_proj")?.magnitude).toHaveLength(4);
  });
});

describe("sizes", () => {
  test("are those of the values", () => {
    const adapter = randomAdapter({ rank: 3, targetModules: ["q_proj", "down_proj"] }, 1, "F16");
    expect(adapter.parameterCount).toBe(3 * 3 * (12 + 16 + 20 + 12));
    expect(adapter.byteLength).toBe(2 * adapter.parameterCount);
    expect(adapter.efficiencyRatio).toBeCloseTo(
      adapter.parameterCount / (3 * (12 * 16 * 2 + 12 * 4 * 2 + 12 * 20 * 3)),
      12,
    );
    expect(randomAdapter({ useDora: true, targetModules: ["k_proj"], rank: 1 }).parameterCount).toBe(3 * (12 + 4 + 4));
  });

  test("are known beforehand: rank 16 on all seven projections of the 8B shape", () => {
    const modules = { q_proj: [4096, 4096], k_proj: [4096, 1024], v_proj: [4096, 1024], o_proj: [4096, 4096] } as const;
    const ffn = { gate_proj: [4096, 12288], up_proj: [4096, 12288], down_proj: [12288, 4096] } as const;
    const shape = { architecture: "qwen3", layers: 36, modules: { ...modules, ...ffn } };
    const estimate = estimateAdapter(loraConfig({ rank: 16 }), shape);
    expect(estimate.parameters).toBe(43_646_976);
    expect(estimate.hostBytes).toBe(4 * 43_646_976);
    expect(estimate.deviceBytes.f16).toBe(2 * 43_646_976);
    expect(estimate.deviceBytes.i8).toBe(43_646_976 + 36 * 7 * 16 * 2 * 4);
    expect(estimate.efficiencyRatio).toBeCloseTo(0.00628, 5);
    expect(slotsBytes(shape, { slots: 8, maxRank: 16, type: "i8" })).toBe(8 * estimate.deviceBytes.i8);
    expect(slotsBytes(shape, { slots: 2, maxRank: 8, type: "f16", modules: ["q_proj"] })).toBe(2 * 36 * 8 * 8192 * 2);
    const adapter = randomAdapter({ useDora: true, rankPattern: { up_proj: 2 } });
    expect(estimateAdapter(adapter.config, tinyShape).parameters).toBe(adapter.parameterCount);
    expect(estimateAdapter(adapter.config, tinyShape).efficiencyRatio).toBe(adapter.efficiencyRatio);
  });
});

/** scale · B·A, value by value. */
function product(adapter: LoraAdapter, layer: number, module: LoraModule): number[] {
  const { a, b, rank, inputs, outputs, scale } = adapter.target(layer, module)!;
  const [down, up] = [matrixValues(a), matrixValues(b)];
  return Array.from({ length: outputs * inputs }, (_, i) => {
    const [row, column] = [Math.floor(i / inputs), i % inputs];
    let sum = 0;
    for (let k = 0; k < rank; k++) sum += up[row * rank + k]! * down[k * inputs + column]!;
    return scale * sum;
  });
}

describe("apply", () => {
  test("is x times scale · B·A, row by row", () => {
    const adapter = randomAdapter({ rank: 3, alpha: 5, useRsLora: true });
    const x = randomValues(2 * 12, 9);
    const change = product(adapter, 1, "v_proj");
    const expected = [0, 1].flatMap((row) =>
      [0, 1, 2, 3].map((out) =>
        x.subarray(12 * row, 12 * row + 12).reduce((sum, value, i) => sum + value * change[12 * out + i]!, 0),
      ),
    );
    const y = adapter.apply(x, 1, "v_proj");
    expect(y).toHaveLength(8);
    expect(Math.max(...y.map((value, i) => Math.abs(value - expected[i]!)))).toBeLessThan(1e-5);
  });

  test("leaves other modules alone, and refuses what it cannot do", () => {
    const adapter = randomAdapter({ targetModules: ["q_proj"] });
    expect(adapter.apply(randomValues(12, 1), 0, "k_proj")).toEqual(new Float32Array(4));
    expect(() => adapter.apply(new Float32Array(13), 0, "q_proj")).toThrow(
      expect.objectContaining({ code: "invalid-argument" }),
    );
    expect(() => adapter.apply(new Float32Array(12), 0, "lm_head" as LoraModule)).toThrow('no module "lm_head"');
    expect(() => randomAdapter({ useDora: true }).apply(new Float32Array(12), 0, "q_proj")).toThrow(
      expect.objectContaining({ code: "needs-weights", tensor: "blk.0.attn_q.weight" }),
    );
  });
});

describe("merging", () => {
  test("adds scale · B·A; a DoRA also brings rows to their magnitudes; unmerging takes it out to 1e-6", () => {
    const options = fc.record({
      rank: fc.integer({ min: 1, max: 6 }),
      alpha: fc.double({ min: -4, max: 4, noNaN: true }),
      useRsLora: fc.boolean(),
      useDora: fc.boolean(),
    });
    fc.assert(
      fc.property(
        options,
        fc.constantFrom(...loraModules),
        fc.nat(1000),
        fc.boolean(),
        (config, module, seed, double) => {
          const adapter = randomAdapter(config, seed + 1);
          const [inputs, outputs] = tinyShape.modules[module];
          const base = randomValues(inputs * outputs, seed);
          const weights = double ? Float64Array.from(base) : Float32Array.from(base);
          adapter.mergeInto(weights, 2, module);
          const sum = product(adapter, 2, module).map((value, i) => base[i]! + value);
          const magnitude = adapter.target(2, module)!.magnitude;
          weights.forEach((value, i) => {
            const row = Math.floor(i / inputs) * inputs;
            const length = Math.hypot(...sum.slice(row, row + inputs));
            const factor = magnitude === undefined ? 1 : magnitude[row / inputs]! / length;
            expect(Math.abs(value - sum[i]! * factor)).toBeLessThan(4e-6);
          });
          adapter.unmerge(weights, 2, module);
          expect(Math.max(...weights.map((value, i) => Math.abs(value - base[i]!)))).toBeLessThan(
            double ? 1e-14 : 1e-6,
          );
        },
      ),
      { seed: 4, numRuns: 300 },
    );
  });

  test("is kept track of", () => {
    const adapter = randomAdapter({ targetModules: ["q_proj"] });
    const weights = randomValues(12 * 16, 1);
    expect(() => adapter.unmerge(weights, 0, "q_proj")).toThrow(expect.objectContaining({ code: "merge-state" }));
    adapter.mergeInto(weights, 0, "q_proj");
    expect(() => adapter.mergeInto(weights, 0, "q_proj")).toThrow("hold the adapter already");
    expect(() => adapter.unmerge(weights, 1, "q_proj")).toThrow("hold the adapter as blk.0.attn_q.weight");
    adapter.unmerge(weights, 0, "q_proj");
    const untouched = randomValues(12 * 4, 2);
    adapter.mergeInto(untouched, 0, "k_proj");
    expect(untouched).toEqual(randomValues(12 * 4, 2));
  });

  test("refuses quantized weights with the reason, weights of another size, and rows without a direction", () => {
    const adapter = randomAdapter({ targetModules: ["q_proj"], useDora: true });
    const packed = new Uint8Array(18) as unknown as Float32Array;
    expect(() => adapter.mergeInto(packed, 0, "q_proj")).toThrow(
      expect.objectContaining({ code: "quantized-weights", message: expect.stringContaining("one of two values") }),
    );
    expect(() => adapter.mergeInto(new Float32Array(5), 0, "q_proj")).toThrow(
      expect.objectContaining({ code: "invalid-argument" }),
    );
    const flat = LoraAdapter.from(adapter.config, tinyShape, (planned) => ({
      ...zeros(planned),
      magnitude: new Float32Array(planned.outputs).fill(1),
    }));
    const weights = new Float32Array(12 * 16);
    expect(() => flat.mergeInto(weights, 0, "q_proj")).toThrow("row 0 of blk.0.attn_q.weight");
    expect(weights.every((value) => value === 0)).toBe(true);
  });
});

describe("requantizeMerged", () => {
  const shape = { ...tinyShape, modules: { ...tinyShape.modules, q_proj: [128, 16] as const } };
  const adapter = LoraAdapter.from(loraConfig({ targetModules: ["q_proj"] }), shape, ({ rank, inputs, outputs }) => ({
    a: randomValues(rank * inputs, 1),
    b: randomValues(outputs * rank, 2).map((value) => value * 0.01),
  }));
  const target = adapter.target(0, "q_proj")!;
  const base = quantize("Q1_0", randomValues(128 * 16, 3));

  test("reports the adapter's change and the error made, in any type", () => {
    const before = dequantize("Q1_0", base, 128 * 16);
    const merged = Float32Array.from(before);
    adapter.mergeInto(merged, 0, "q_proj");
    const rms = (x: Float32Array, y: Float32Array) =>
      Math.hypot(...x.map((value, i) => value - y[i]!)) / Math.sqrt(x.length);
    for (const type of ["F32", "F16", "Q8_0", "Q1_0"] as const) {
      const result = requantizeMerged({ type: "Q1_0", data: base }, target, type);
      const after = dequantize(type, result.data, 128 * 16);
      expect(result.change).toBeCloseTo(rms(merged, before), 6);
      expect(result.error).toBeCloseTo(rms(after, merged), 6);
      expect(result.relativeError).toBe(result.error / result.change);
    }
    expect(requantizeMerged({ type: "Q1_0", data: base }, target, "F32").error).toBe(0);
    expect(requantizeMerged({ type: "Q1_0", data: base }, target, "F16").relativeError).toBeLessThan(0.02);
    expect(requantizeMerged({ type: "Q1_0", data: base }, target, "Q1_0").relativeError).toBeGreaterThan(0.9);
  });

  test("refuses weights of another size", () => {
    expect(() => requantizeMerged({ type: "Q1_0", data: base.subarray(18) }, target, "F16")).toThrow(
      expect.objectContaining({ code: "invalid-argument", tensor: "blk.0.attn_q.weight" }),
    );
  });
});
