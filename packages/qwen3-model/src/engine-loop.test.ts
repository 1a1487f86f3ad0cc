import type { Plan, Step, StepResult } from "@niwaki/kernels-native";
import { describe, expect, it } from "vitest";
import { Engine } from "./engine.js";
import type { EngineRequest, Sample } from "./engine-request.js";
import { checkSampling } from "./options.js";

const BLOCKS = 12;

/** Kernels whose steps end when the test says so; the token after a row is the row's token and 1. */
class Kernels {
  readonly steps: { step: Step; end: () => void; fail: (error: unknown) => void }[] = [];
  readonly log: string[] = [];

  run(step: Step): Promise<StepResult> {
    this.log.push(`step ${this.steps.length}`);
    const tokens = Int32Array.from(step.tokens);
    const samples = step.samples!.map(({ output }) => ({
      token: tokens[step.outputs[output]!]! + 1,
      logprob: null,
      top: [],
    }));
    return new Promise((resolve, reject) => {
      const end = () => resolve({ samples, logits: null, started: performance.now() });
      this.steps.push({ step: { ...step, tokens }, end, fail: reject });
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
    readonly tokens: number,
  ) {}

  onSample({ token }: Sample): boolean {
    this.got.push(token);
    return this.got.length < this.tokens;
  }

  onEnd(error?: unknown): void {
    this.error = error;
  }
}

function make(blockCount = BLOCKS) {
  const kernels = new Kernels();
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
    onStep: undefined,
  });
  const ask = (promptIds: number[], tokens: number) => {
    const request = new Request(promptIds, tokens);
    engine.submit(request);
    return request;
  };
  return { engine, kernels, ask };
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
