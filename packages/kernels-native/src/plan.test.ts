import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { cpuTiers, Device } from "./device.js";
import type { SampleResult, Step } from "./step.js";
import { firstDifference } from "./test-bits.js";
import { failure } from "./test-errors.js";
import { referenceLogits, relativeError } from "./test-reference.js";
import { slowPlan } from "./test-slow-plan.js";
import { f32Tensor } from "./test-tensors.js";
import { shape, TinyModel, type TinyWeights, tinyWeights } from "./test-tiny-model.js";

const tokens = Array.from({ length: 40 }, (_, i) => (i * 37 + 11) % shape.vocabulary);
let device: Device;

beforeAll(() => {
  device = Device.open({ threads: 2 });
});
afterAll(() => device.dispose());

async function wholePrompt(on: Device, weights: TinyWeights): Promise<Float32Array> {
  using model = await TinyModel.load(on, weights);
  return (await model.step(tokens, 0)).logits;
}

describe("Plan", () => {
  it("computes what plain floating point does", async () => {
    for (const [type, tolerance] of [
      ["F32", 1e-5],
      ["Q1_0", 1e-2],
      ["Q2_0", 1e-2],
    ] as const) {
      const weights = tinyWeights(type);
      const expected = referenceLogits(weights, tokens);
      expect(relativeError(await wholePrompt(device, weights), expected.flat())).toBeLessThan(tolerance);
    }
  });

  it("gives the same bits on every tier and number of threads", async () => {
    for (const type of ["Q1_0", "Q2_0", "F16"] as const) {
      const weights = tinyWeights(type);
      const expected = await wholePrompt(device, weights);
      for (const tier of cpuTiers()) {
        for (const threads of [1, 3]) {
          await using other = Device.open({ tier, threads });
          expect(firstDifference(await wholePrompt(other, weights), expected)).toBe(-1);
        }
      }
    }
  });

  it("gives the same bits in chunks, in other blocks, and beside another sequence", async () => {
    const { vocabulary } = shape;
    using model = await TinyModel.load(device, tinyWeights("Q1_0"), "f16");
    const { logits: expected } = await model.step(tokens, 0);
    for (const size of [1, 7, 16]) {
      for (let start = 0; start < tokens.length; start += size) {
        const chunk = tokens.slice(start, start + size);
        const { logits } = await model.step(chunk, start, { blocks: [9, 8, 10] });
        const part = expected.subarray(start * vocabulary, (start + chunk.length) * vocabulary);
        expect(firstDifference(logits, part)).toBe(-1);
      }
    }
    // rows 0-4: another sequence's prompt; rows 5-9: tokens 35-39 of ours, whose past is in blocks 9, 8, 10
    const { logits } = await model.plan.run({
      tokens: Int32Array.from([1, 2, 3, 4, 5, ...tokens.slice(35)]),
      sequences: [
        { rowCount: 5, contextLength: 5, blockTable: Int32Array.of(15) },
        { rowCount: 5, contextLength: 40, blockTable: Int32Array.of(9, 8, 10, 0) },
      ],
      outputs: Int32Array.of(2, 5, 9),
      logits: true,
    });
    expect(logits!.subarray(vocabulary, 2 * vocabulary)).toEqual(expected.subarray(35 * vocabulary, 36 * vocabulary));
    expect(logits!.subarray(2 * vocabulary)).toEqual(expected.subarray(39 * vocabulary, 40 * vocabulary));
  });

  it("runs steps in the order of the calls", async () => {
    using model = await TinyModel.load(device, tinyWeights("Q1_0"));
    const { logits: expected } = await model.step(tokens.slice(0, 3), 0, { blocks: [12] });
    const steps = await Promise.all(tokens.slice(0, 3).map((token, i) => model.step([token], i)));
    expect(steps.flatMap(({ logits }) => [...logits])).toEqual([...expected]);
  });

  it("lets steps follow until they are enough", async () => {
    const { plan, step } = await slowPlan(device);
    using model = await TinyModel.load(device, tinyWeights("Q1_0"));
    const first = {
      tokens: Int32Array.of(1, 2),
      sequences: [{ rowCount: 2, contextLength: 2, blockTable: Int32Array.of(3, 4) }],
      outputs: Int32Array.of(1),
      samples: [{ output: 0, temperature: 1, seed: 3 }],
    };
    const { samples: expected } = await model.plan.run({ ...first, following: 30 });
    expect(expected).toHaveLength(31);
    // As the steps one by one.
    let next: Step = first;
    for (const { token } of expected) {
      expect((await model.plan.run(next)).samples[0]!.token).toBe(token);
      const contextLength = next.sequences[0]!.contextLength + 1;
      const sequences = [{ ...first.sequences[0]!, rowCount: 1, contextLength }];
      next = { ...first, tokens: Int32Array.of(token), sequences, outputs: Int32Array.of(0) };
    }
    const stop = expected[7]!.token;
    const stopped = await model.plan.run({
      ...first,
      samples: [{ ...first.samples[0]!, stopTokens: [stop] }],
      following: 30,
    });
    expect(stopped.samples).toEqual(expected.slice(0, expected.findIndex(({ token }) => token === stop) + 1));

    const enough = new AbortController();
    const occupied = plan.run(step); // what follows has to wait
    const run = model.plan.run({ ...first, following: 30 }, { enough: enough.signal });
    enough.abort();
    expect((await run).samples).toEqual(expected.slice(0, 1));
    const late = await model.plan.run({ ...first, following: 30 }, { enough: enough.signal });
    expect(late.samples).toEqual(expected.slice(0, 1));
    await occupied;
    plan.dispose();
  });

  it("gives samples early, while steps that follow run", async () => {
    using model = await TinyModel.load(device, tinyWeights("Q1_0"));
    const step = {
      tokens: Int32Array.of(1, 2),
      sequences: [{ rowCount: 2, contextLength: 2, blockTable: Int32Array.of(3, 4) }],
      outputs: Int32Array.of(1),
      samples: [{ output: 0, temperature: 1, seed: 3, logprobs: 1 }],
      following: 20,
    };
    const { samples: expected } = await model.plan.run(step);
    const early: SampleResult[][] = [];
    const starts = new Set<number>();
    const onSamples = (samples: SampleResult[], started: number) => {
      early.push(samples);
      starts.add(started);
    };
    const { samples, started } = await model.plan.run(step, { onSamples });
    expect(early.map(({ length }) => length)).toEqual(Array(20).fill(1));
    expect([...early.flat(), ...samples]).toEqual(expected);
    expect([...starts]).toEqual([started]);
    early.length = 0;
    expect((await model.plan.run(step, { onSamples, samplesWithin: 60_000 })).samples).toEqual(expected);
    expect((await model.plan.run({ ...step, following: 0 }, { onSamples })).samples).toEqual(expected.slice(0, 1));
    expect(early).toEqual([]);

    const reason = new Error("not that token");
    let calls = 0;
    const refuse = () => {
      calls++;
      throw reason;
    };
    await expect(model.plan.run(step, { onSamples: refuse })).rejects.toBe(reason);
    expect(calls).toBe(1);
    await failure("invalid-argument", () => model.plan.run(step, { onSamples: 5 as never }));
    await failure("invalid-argument", () => model.plan.run(step, { onSamples, samplesWithin: -1 }));
  });

  it("copies the arrays of a step at the call", async () => {
    const { plan, step } = await slowPlan(device);
    using model = await TinyModel.load(device, tinyWeights("Q1_0"));
    const { logits: expected } = await model.step([1, 2], 0);
    const occupied = plan.run(step); // what follows has to wait
    const later = { tokens: Int32Array.of(1, 2), blockTable: Int32Array.of(3), outputs: Int32Array.of(0, 1) };
    const run = model.plan.run({
      tokens: later.tokens,
      sequences: [{ rowCount: 2, contextLength: 2, blockTable: later.blockTable }],
      outputs: later.outputs,
      logits: true,
    });
    for (const array of Object.values(later)) array.fill(0);
    expect((await run).logits).toEqual(expected);
    await occupied;
    plan.dispose();
  });

  it("tells when a step began, apart from what the device did before", async () => {
    const { plan, step } = await slowPlan(device);
    using model = await TinyModel.load(device, tinyWeights("Q1_0"));
    const occupied = plan.run(step);
    const { started } = await model.step([1], 0);
    const ended = performance.now();
    expect(ended - started).toBeLessThan(started - (await occupied).started);
    plan.dispose();
  });

  it("names the operation whose activations are not finite, and works on", async () => {
    const weights = tinyWeights("F32");
    const large = f32Tensor("large", 1, shape.hidden, new Float32Array(shape.hidden).fill(3e38));
    weights.layers[1] = { ...weights.layers[1]!, ffnNorm: large };
    using model = await TinyModel.load(device, weights);
    const error = await failure("non-finite", () => model.step([1, 2, 3], 0));
    expect(error.message).toContain("blk.1");
    const again = await failure("non-finite", () => model.step([1, 2, 3], 0));
    expect(again.message).toBe(error.message);
    using sound = await TinyModel.load(device, tinyWeights("F32"));
    expect((await sound.step([1], 0)).logits).toHaveLength(shape.vocabulary);
  });

  it("can be cancelled while it runs, while it waits and before it starts", async () => {
    const { plan, step } = await slowPlan(device);
    const reason = new Error("the user left");
    const run = () => {
      const controller = new AbortController();
      return { controller, result: failure("cancelled", () => plan.run(step, { signal: controller.signal })) };
    };
    const running = run();
    const waiting = run();
    setTimeout(() => {
      waiting.controller.abort(reason);
      running.controller.abort(reason);
    }, 5);
    for (const { result } of [running, waiting]) expect((await result).cause).toBe(reason);
    const early = await failure("cancelled", () => plan.run(step, { signal: AbortSignal.abort(reason) }));
    expect(early.cause).toBe(reason);
    // a signal that aborts too late changes nothing, and the device is none the worse
    const late = new AbortController();
    const result = await plan.run(step, { signal: late.signal });
    late.abort(reason);
    expect(result.samples).toHaveLength(1);
    await failure("invalid-argument", () => plan.run(step, { signal: {} as AbortSignal }));
    plan.dispose();
  });

  it("keeps what it uses when matrices and caches are disposed before it", async () => {
    using model = await TinyModel.load(device, tinyWeights("Q1_0"));
    const { logits: expected } = await model.step(tokens, 0);
    for (const matrix of model.matrices) matrix.dispose();
    model.kv.dispose();
    expect((await model.step(tokens, 0)).logits).toEqual(expected);
    const run = model.step(tokens, 0);
    model.plan.dispose();
    model.plan.dispose();
    expect((await run).logits).toEqual(expected);
    const error = await failure("disposed", () => model.step(tokens, 0));
    expect(error.message).toBe("this Plan has been disposed and cannot be used any more");
  });

  it("outlives its device without harm", async () => {
    const own = Device.open({ threads: 2 });
    const model = await TinyModel.load(own, tinyWeights("Q1_0"));
    await model.step(tokens, 0);
    await own.dispose();
    await failure("disposed", () => model.step(tokens, 0));
    model.dispose();
  });
});
