import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Buffer } from "./buffer.js";
import { Device } from "./device.js";
import { firstDifference } from "./test-bits.js";
import { failure } from "./test-errors.js";
import { random } from "./test-random.js";
import { f32Tensor, randomTensor } from "./test-tensors.js";
import type { TrainingEncoder } from "./training-encoder.js";
import type { AdamWStep, TrainingBatch, TrainingPlan } from "./training-plan.js";

const vocabulary = 40;
const width = 32;
const heads = { heads: 2, kvHeads: 1 };
const limits = { maxRows: 12, maxOutputs: 8, maxSequence: 10, vocabulary, rope: { headDim: 16, base: 1e4 } };
const adamW: AdamWStep = {
  step: 1,
  learningRate: 0.02,
  beta1: 0.9,
  beta2: 0.99,
  epsilon: 1e-8,
  weightDecay: 0,
  maxGradientNorm: 1,
};
const batch: TrainingBatch = {
  tokens: Int32Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
  sequences: Int32Array.of(6, 4),
  outputs: Int32Array.of(1, 2, 4, 8),
  targets: Int32Array.of(11, 12, 13, 14),
  weights: Float32Array.of(0.25, 0.25, 0.25, 0.25),
};

let device: Device;
beforeAll(() => {
  device = Device.open({ threads: 2 });
});
afterAll(() => device.dispose());

async function parts(on = device) {
  const tensor = (name: string, rows: number, columns: number, seed: number) =>
    randomTensor(name, "F32", rows, columns, seed);
  return {
    table: await on.loadMatrix(tensor("table", vocabulary, width, 1)),
    qkv: await on.loadMatrix([tensor("q", 32, width, 2), tensor("k", 16, width, 3), tensor("v", 16, width, 4)]),
    output: await on.loadMatrix(tensor("output", width, 32, 5)),
    gateUp: await on.loadMatrix([tensor("gate", 48, width, 6), tensor("up", 48, width, 7)]),
    down: await on.loadMatrix(tensor("down", width, 48, 8)),
    norm: on.loadVector(f32Tensor("norm", 1, width, new Float32Array(width).fill(1))),
    headNorm: on.loadVector(f32Tensor("head_norm", 1, 16, new Float32Array(16).fill(1))),
  };
}
type Parts = Awaited<ReturnType<typeof parts>>;

function layer(e: TrainingEncoder, p: Parts): Buffer {
  const adapter = { part: 0, rank: 4, scale: 2 };
  const embedded = e.embed(p.table);
  const qkv = e.linear(e.rmsNorm(embedded, p.norm, 1e-6), p.qkv, { adapters: [adapter, { ...adapter, part: 2 }] });
  const qk = e.normRope(qkv, heads, p.headNorm, p.headNorm, 1e-6);
  const attended = e.linear(e.causalAttention(qk, qkv, heads), p.output, { residual: embedded, adapters: [adapter] });
  const gateUp = e.linear(e.rmsNorm(attended, p.norm, 1e-6), p.gateUp, { adapters: [{ ...adapter, part: 1 }] });
  const out = e.linear(e.swiglu(gateUp), p.down, { residual: attended });
  return e.linear(e.rmsNorm(e.selectOutputs(out), p.norm, 1e-6), p.table);
}

async function plan(on = device): Promise<TrainingPlan> {
  const p = await parts(on);
  const made = on.encodeTraining(limits, (e) => layer(e, p));
  const next = random(9);
  await made.write(
    "parameters",
    Float32Array.from({ length: made.parameterCount }, () => 0.2 * (next() - 0.5)),
  );
  return made;
}

describe("TrainingPlan", () => {
  it("learns a batch, with the same bits on any number of threads and every tier", async () => {
    const run = async (on: Device) => {
      using training = await plan(on);
      const losses: number[] = [];
      for (let step = 1; step <= 30; step++) {
        losses.push(await training.accumulate(batch));
        expect(await training.update({ ...adamW, step })).toBeGreaterThan(0);
      }
      return { losses, parameters: await training.read("parameters") };
    };
    const first = await run(device);
    expect(first.losses[0]!).toBeGreaterThan(3);
    expect(first.losses.at(-1)!).toBeLessThan(first.losses[0]! - 1);
    await using other = Device.open({ threads: 1, tier: "portable" });
    const second = await run(other);
    expect(second.losses).toEqual(first.losses);
    expect(firstDifference(second.parameters, first.parameters)).toBe(-1);
  });

  it("keeps what is written and gives it back", async () => {
    using training = await plan();
    expect(training.parameterCount).toBe(4 * (32 + 32) + 4 * (32 + 16) + 4 * (32 + 32) + 4 * (32 + 48));
    expect(training.byteLength).toBeGreaterThan(4 * 4 * training.parameterCount);
    for (const state of ["parameters", "gradients", "firstMoments", "secondMoments"] as const) {
      const values = Float32Array.from({ length: training.parameterCount }, (_, i) => i);
      await training.write(state, values);
      expect(firstDifference(await training.read(state), values)).toBe(-1);
    }
  });

  it("stops when its signal is aborted", async () => {
    using training = await plan();
    const controller = new AbortController();
    // What is loaded first keeps the device busy until the signal is aborted.
    const busy = device.loadMatrix(f32Tensor("busy", 4096, 2048, new Float32Array(4096 * 2048)));
    const run = training.accumulate(batch, { signal: controller.signal });
    controller.abort(new Error("enough"));
    await expect(run).rejects.toMatchObject({ code: "cancelled", cause: { message: "enough" } });
    (await busy).dispose();
  });

  it("refuses what does not fit, naming argument and value", async () => {
    const p = await parts();
    const cases: [(e: TrainingEncoder) => Buffer, string][] = [
      [(e) => e.embed(p.down), "table.rows is 32: it must have a row for each of 40 tokens"],
      [(e) => e.rmsNorm(e.embed(p.table), p.headNorm, 1e-6), "input.width is 32: it must be 16 here"],
      [(e) => e.linear(e.embed(p.table), p.down), "input.width is 32: it must be 48 here"],
      [
        (e) => e.linear(e.embed(p.table), p.qkv, { residual: e.embed(p.table) }),
        "residual.width is 32: it must be 64 here",
      ],
      [
        (e) => e.linear(e.embed(p.table), p.qkv, { adapters: [{ part: 0, rank: 0, scale: 1 }] }),
        "options.adapters[0].rank is 0: it must be an integer from 1 to 1024",
      ],
      [(e) => e.normRope(e.embed(p.table), heads, p.headNorm, p.headNorm, 1e-6), "qkv.width is 32: it must be 64 here"],
      [(e) => e.embed(p.table), "logits.width is 32: it must be 40 here"],
      [(e) => e.linear(e.embed(p.table), p.table), "logits is a Buffer: it must have the output rows"],
    ];
    for (const [build, message] of cases) {
      const { message: got } = await failure("invalid-argument", () => device.encodeTraining(limits, build));
      expect(got).toContain(message);
    }
    const badPart = (e: TrainingEncoder) => {
      e.label("blk.7");
      return e.linear(e.selectOutputs(e.embed(p.table)), p.table, { adapters: [{ part: 1, rank: 4, scale: 1 }] });
    };
    const { message } = await failure("invalid-argument", () => device.encodeTraining(limits, badPart));
    expect(message).toContain("blk.7: there is no tensor 1");
  });

  it("refuses batches and steps out of range", async () => {
    const training = await plan();
    const bad = async (run: () => Promise<unknown>, message: string) =>
      expect((await failure("invalid-argument", run)).message).toContain(message);
    await bad(() => training.accumulate({ ...batch, sequences: Int32Array.of(6, 5) }), "the rows of all sequences");
    await bad(() => training.accumulate({ ...batch, targets: Int32Array.of(1, 2, 3, 40) }), "token 40");
    await bad(() => training.accumulate({ ...batch, weights: new Float64Array(4) as never }), "batch.weights");
    await bad(() => training.update({ ...adamW, beta1: 1 }), "step.beta1 is 1");
    await bad(() => training.update({ ...adamW, step: 0 }), "step.step is 0");
    await bad(() => training.write("parameters", new Float32Array(3)), "values is a Float32Array of length 3");
    await bad(() => training.read("loss" as never), 'state is "loss"');
    training.dispose();
    await failure("disposed", () => training.accumulate(batch));
  });
});
