import type { Plan, RunOptions, Step, StepResult } from "@niwaki/kernels-native";
import { describe, expect, it } from "vitest";
import { Engine } from "./engine.js";
import type { EngineRequest, Sample } from "./engine-request.js";
import type { StepRecord } from "./engine-statistics.js";
import { checkSampling } from "./options.js";

const BLOCKS = 12;

/** A step that runs until the test ends it, with so many that follow it. */
interface RunningStep {
  readonly step: Step;
  readonly signal: AbortSignal;
  readonly enough: AbortSignal;
  /** Hands over the samples of so many steps; another runs. */
  handOver(steps: number): void;
  end(following?: number): void;
  fail(error: unknown): void;
}

/** Kernels whose steps end when the test says so; the token after a row is the row's token and 1. */
class Kernels {
  readonly steps: RunningStep[] = [];
  readonly log: string[] = [];

  run(step: Step, { signal, enough, onSamples }: Required<RunOptions>): Promise<StepResult> {
    this.log.push(`step ${this.steps.length}`);
    const tokens = Int32Array.from(step.tokens);
    const started = performance.now();
    let done = 0;
    const samples = (steps: number) =>
      Array.from({ length: steps }, () => {
        done++;
        return step.samples!.map(({ output }) => ({
          token: tokens[step.outputs[output]!]! + done,
          logprob: null,
          top: [],
        }));
      }).flat();
    return new Promise((resolve, reject) => {
      const handOver = (steps: number) => onSamples(samples(steps), started);
      const end = (following = 0) => resolve({ samples: samples(following + 1), logits: null, started });
      this.steps.push({ step: { ...step, tokens }, signal, enough, handOver, end, fail: reject });
    });
  }
}

/** Wants so many tokens. */
class Request implements EngineRequest {
  readonly sampling = checkSampling({ seed: 1 }, 1000);
  readonly got: number[] = [];
  error: unknown;

  constructor(
    readonly promptIds: number[],
    readonly maxTokens: number,
  ) {}

  onSample({ token }: Sample): boolean | Promise<boolean> {
    this.got.push(token);
    return this.got.length < this.maxTokens;
  }

  onEnd(error?: unknown): void {
    this.error = error;
  }
}

function make(blockCount = BLOCKS, burstMilliseconds = 0) {
  const kernels = new Kernels();
  const records: StepRecord[] = [];
  const storage = { blockCount, blockBytes: 1, copyBlock() {}, readBlock: () => new Uint8Array(1), writeBlock() {} };
  const engine = new Engine(kernels as unknown as Plan, {
    vocabulary: 1000,
    blockSize: 4,
    blockCount,
    contextLength: 4 * blockCount,
    chunkSize: 8,
    maxRows: 12,
    maxSequences: 4,
    storage,
    policy: "interleaved",
    targetMilliseconds: undefined,
    burstMilliseconds,
    onStep: (step) => records.push(step),
  });
  const ask = (promptIds: number[], tokens: number) => {
    const request = new Request(promptIds, tokens);
    engine.submit(request);
    return request;
  };
  return { engine, kernels, records, ask };
}

const settled = () => new Promise((resolve) => setImmediate(resolve));
const tokensOf = ({ step }: { step: Step }) => [...step.tokens];

describe("the engine's loop", () => {
  it("starts the next step before anybody reads the tokens of the last, without the rows of those that ended", async () => {
    const { kernels, ask } = make();
    const a = ask([10], 3);
    const b = ask([20], 1);
    await settled();
    expect(tokensOf(kernels.steps[0]!)).toEqual([10, 20]);
    const first = kernels.steps[0]!;
    const take = a.onSample.bind(a);
    a.onSample = (sample) => {
      queueMicrotask(() => kernels.log.push("read"));
      return take(sample);
    };
    first.end();
    await settled();
    expect(kernels.log).toEqual(["step 0", "step 1", "read"]);
    expect([tokensOf(kernels.steps[1]!), b.got]).toEqual([[11], [21]]);
  });

  it("fails the requests of a step that fails, with the reason, and serves the others", async () => {
    const { engine, kernels, ask } = make();
    const a = ask([10], 5);
    await settled();
    const b = ask([20], 2);
    const reason = new Error("the kernels stumbled");
    kernels.steps[0]!.fail(reason);
    await settled();
    expect([a.error, b.error]).toEqual([reason, undefined]);
    for (const step of [1, 2]) {
      kernels.steps[step]!.end();
      await settled();
    }
    expect([b.got, kernels.steps.length]).toEqual([[21, 22], 3]);
    expect(engine.statistics()).toMatchObject({ running: 0, waiting: 0, cache: { usedBlocks: 0, sequences: 0 } });
  });

  it("hands the blocks of a cancelled request to nobody before its step has ended", async () => {
    const { engine, kernels, ask } = make(3);
    const a = ask([10, 11, 12, 13, 14], 5);
    const b = ask([20], 5);
    await settled();
    const held = new Set(kernels.steps[0]!.step.sequences.flatMap(({ blockTable }) => [...blockTable]));
    expect(held.size).toBe(3);
    engine.cancel(a);
    const c = ask([30, 31, 32, 33, 34], 1);
    await settled();
    expect([engine.statistics().cache.usedBlocks, kernels.steps.length]).toEqual([3, 1]);
    for (const step of [0, 1, 2, 3, 4]) {
      kernels.steps[step]?.end();
      await settled();
    }
    expect([a.got, b.got, c.got]).toEqual([[], [21, 22, 23, 24, 25], [35]]);
    expect(engine.statistics().cache.usedBlocks).toBe(0);
  });
});

describe("a burst of steps", () => {
  /** A request whose burst runs. */
  async function bursting(tokens: number, blockCount = BLOCKS) {
    const made = make(blockCount, 60_000);
    const a = made.ask([10], tokens);
    await settled();
    // The kernels' next step, ended with so many that followed it.
    const end = async (following = 0) => {
      made.kernels.steps.at(-1)!.end(following);
      await settled();
      return made.kernels.steps.at(-1)!;
    };
    return { ...made, a, end, burst: made.kernels.steps[0]! };
  }

  it("is as long as the answer may be", async () => {
    const { engine, kernels, a, end, burst } = await bursting(10);
    expect(kernels.steps.map(({ step }) => step.following)).toEqual([9]);
    expect(burst.step.sequences[0]!.blockTable.length).toBe(3);
    await end(9);
    expect(a.got).toEqual([11, 12, 13, 14, 15, 16, 17, 18, 19, 20]);
    expect([kernels.steps.length, engine.statistics()]).toMatchObject([
      1,
      { steps: 10, computedTokens: 10, generatedTokens: 10, running: 0, cache: { usedBlocks: 0 } },
    ]);
  });

  it("is followed by another, from where it ended", async () => {
    const { a, end } = await bursting(40);
    const second = await end(15);
    expect([tokensOf(second), second.step.sequences[0]!.contextLength]).toEqual([[26], 17]);
    expect(second.step.following).toBe(15);
    const third = await end(15);
    expect([tokensOf(third), third.step.following]).toEqual([[42], 7]);
    await end(7);
    expect(a.got).toEqual(Array.from({ length: 40 }, (_, i) => 11 + i));
  });

  it("ends for a request that comes, and for one that goes", async () => {
    const { engine, ask, a, end, burst } = await bursting(40);
    expect(burst.enough.aborted).toBe(false);
    const b = ask([20, 21], 30);
    expect([burst.enough.aborted, burst.signal.aborted]).toEqual([true, false]);
    const both = await end(2);
    expect([tokensOf(both), both.step.following, a.got]).toEqual([[13, 20, 21], 0, [11, 12, 13]]);
    const together = await end();
    expect([tokensOf(together), together.step.following]).toEqual([[14, 22], 15]);
    engine.cancel(b);
    expect([together.enough.aborted, together.signal.aborted]).toEqual([true, false]);
    const alone = await end(1);
    expect([tokensOf(alone), a.got.length, b.got]).toEqual([[16], 6, [22]]);
    engine.cancel(a);
    expect(alone.signal.aborted).toBe(true);
    alone.fail(new Error("cancelled"));
    await settled();
    expect(engine.statistics()).toMatchObject({ running: 0, cache: { usedBlocks: 0, sequences: 0 } });
  });

  it("ends for other work of the device, and another begins", async () => {
    const { engine, end, burst } = await bursting(40);
    engine.endBurst();
    expect([burst.enough.aborted, burst.signal.aborted]).toEqual([true, false]);
    const next = await end();
    expect([tokensOf(next), next.step.following, next.enough.aborted]).toEqual([[11], 15, false]);
  });

  it("goes on without those that ended in it", async () => {
    const { ask, a, end } = await bursting(40);
    const b = ask([20], 30);
    await end();
    await end();
    // A stop string, which the kernels know nothing of.
    b.onSample = ({ token }) => token < 24;
    const next = await end(6);
    expect([tokensOf(next), a.got.at(-1)]).toEqual([[19], 19]);
    await end(15);
    expect(a.got).toEqual(Array.from({ length: a.got.length }, (_, i) => 11 + i));
  });

  it("computes again what a slow consumer had no room for", async () => {
    const { kernels, a, end } = await bursting(40);
    let read = () => {};
    const take = a.onSample.bind(a);
    a.onSample = (sample) => {
      const goesOn = take(sample);
      if (sample.token !== 14) return goesOn;
      return new Promise((resolve) => {
        read = () => resolve(goesOn);
      });
    };
    const before = await end(9);
    expect([a.got, before.step.following]).toEqual([[11, 12, 13, 14], 15]);
    read();
    await settled();
    const next = kernels.steps.at(-1)!;
    expect([tokensOf(next), next.step.sequences[0]!.contextLength]).toEqual([[14], 5]);
  });

  it("hands over tokens while it runs", async () => {
    const { engine, records, a, end, burst } = await bursting(40);
    burst.handOver(1);
    burst.handOver(3);
    expect([a.got, burst.enough.aborted]).toEqual([[11, 12, 13, 14], false]);
    expect(engine.statistics()).toMatchObject({ steps: 4, computedTokens: 4, generatedTokens: 4, running: 1 });
    const second = await end(11);
    expect([tokensOf(second), second.step.sequences[0]!.contextLength, a.got.length]).toEqual([[26], 17, 16]);
    expect(records.map(({ number, steps, chunks }) => [number, steps, chunks[0]!.start])).toEqual([
      [1, 1, 0],
      [1, 3, 1],
      [1, 12, 4],
    ]);
    for (const [i, { begun, planned, started }] of records.slice(1).entries())
      expect([begun, planned, started]).toEqual(Array(3).fill(records[i]!.ended));
  });

  it("ends for the one that ends with a token handed over, whose blocks are held until then", async () => {
    const { engine, ask, a, end } = await bursting(40);
    const b = ask([20], 30);
    await end();
    const burst = await end();
    b.onSample = ({ token }) => token < 23;
    burst.handOver(1);
    expect(burst.enough.aborted).toBe(false);
    burst.handOver(1);
    expect([burst.enough.aborted, burst.signal.aborted]).toEqual([true, false]);
    expect(engine.statistics().cache.sequences).toBe(2);
    const alone = await end(0);
    expect([tokensOf(alone), alone.step.following, a.got.at(-1)]).toEqual([[15], 15, 15]);
    expect(engine.statistics().cache.sequences).toBe(1);
    a.onSample = () => false;
    alone.handOver(1);
    expect([alone.enough.aborted, alone.signal.aborted]).toEqual([true, true]);
    alone.fail(new Error("cancelled"));
    await settled();
    expect([a.error, engine.statistics()]).toMatchObject([
      undefined,
      { running: 0, cache: { usedBlocks: 0, sequences: 0 } },
    ]);
  });

  it("ends for a slow consumer, who gets what was computed for it if it reads in time", async () => {
    const { a, end, burst } = await bursting(40);
    const reads: (() => void)[] = [];
    const take = a.onSample.bind(a);
    a.onSample = (sample) => {
      const goesOn = take(sample);
      return new Promise((resolve) => reads.push(() => resolve(goesOn)));
    };
    burst.handOver(1);
    expect(burst.enough.aborted).toBe(true);
    reads.shift()!();
    await settled();
    burst.handOver(1);
    expect(a.got).toEqual([11, 12]);
    burst.handOver(1);
    reads.shift()!();
    await settled();
    expect(a.got).toEqual([11, 12]);
    a.onSample = take;
    const next = await end(0);
    expect([tokensOf(next), next.step.sequences[0]!.contextLength]).toEqual([[12], 3]);
  });

  it("is not begun without the blocks for it", async () => {
    const { burst } = await bursting(30, 3);
    expect([burst.step.following, burst.step.sequences[0]!.blockTable.length]).toEqual([0, 1]);
  });
});
