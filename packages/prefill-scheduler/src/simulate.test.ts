import { describe, expect, it } from "vitest";
import type { Policy } from "./scheduler-options.js";
import { type SimulationOptions, simulate, type TraceRequest } from "./simulate.js";
import { random } from "./test-random.js";

const error = (code: string, value?: unknown) => expect.objectContaining({ name: "SchedulerError", code, value });

/** A step takes 10 ms and 1 ms for each row. */
const options: SimulationOptions = {
  maxTokensPerStep: 64,
  maxSequencesPerStep: 8,
  chunkSize: 32,
  blockCount: 100,
  blockSize: 16,
  cost: { fixed: 10, perToken: 1, perContextToken: 0 },
};

describe("simulate", () => {
  it("gives a request the times that its steps take", () => {
    const report = simulate([{ at: 5, promptTokens: 40, outputTokens: 3 }], options);
    // Chunks of 32 and 8, then two rows: 42, 18, 11 and 11 ms.
    expect(report.steps.map(({ at, milliseconds, decodeRows, promptRows }) => [at, milliseconds, decodeRows, promptRows]))
      // biome-ignore format: a table
      .toEqual([
      [5, 42, 0, 32],
      [47, 18, 0, 8],
      [65, 11, 1, 0],
      [76, 11, 1, 0],
    ]);
    expect(report).toMatchObject({ completed: 1, cancelled: 0, refused: 0, duration: 87, preemptions: 0 });
    expect(report.requests).toEqual([
      { index: 0, at: 5, outcome: "completed", firstToken: 65, end: 87, tokens: 3, cachedTokens: 0, preemptions: 0 },
    ]);
    expect(report.timeToFirstToken).toEqual({ p50: 60, p99: 60, max: 60 });
    expect(report.timeBetweenTokens).toEqual({ p50: 11, p99: 11, max: 11 });
    expect(report.throughput).toBeCloseTo(3000 / 87, 10);
    expect(report.goodput).toBeCloseTo(1000 / 87, 10);
  });

  it("counts for goodput what keeps the service level", () => {
    const trace = [
      { at: 0, promptTokens: 10, outputTokens: 2 },
      { at: 1, promptTokens: 30, outputTokens: 2 },
    ];
    const goodput = (timeToFirstToken: number, timeBetweenTokens: number) => {
      const report = simulate(trace, { ...options, serviceLevel: { timeToFirstToken, timeBetweenTokens } });
      return Math.round((report.goodput * report.duration) / 1000);
    };
    // The first has its tokens at 20 and 61 (beside the second's prompt), the second at 61 and 72.
    expect(simulate(trace, options).requests.map(({ firstToken, end }) => [firstToken, end])).toEqual([
      [20, 61],
      [61, 72],
    ]);
    expect([goodput(60, 41), goodput(59, 41), goodput(60, 40), goodput(20, 41), goodput(19, 11)]).toEqual([
      2, 1, 1, 1, 0,
    ]);
  });

  it("cancels waiting and running requests, also while a step runs, and goes on", () => {
    const report = simulate(
      [
        { at: 0, promptTokens: 10, outputTokens: 50, cancelAt: 31 },
        { at: 0, promptTokens: 10, outputTokens: 2 },
        { at: 0, promptTokens: 10, outputTokens: 2, cancelAt: 0 },
        { at: 5, promptTokens: 10, outputTokens: 2, cancelAt: 6 },
      ],
      options,
    );
    expect(report.requests.map(({ outcome, tokens }) => [outcome, tokens])).toEqual([
      ["cancelled", 1],
      ["completed", 2],
      ["cancelled", 0],
      ["cancelled", 0],
    ]);
  });

  it("refuses what can never fit and ends at what the cache holds", () => {
    const report = simulate(
      [
        { at: 0, promptTokens: 1601, outputTokens: 1 },
        { at: 0, promptTokens: 1600, outputTokens: 5 },
      ],
      options,
    );
    expect(report.requests.map(({ outcome, tokens }) => [outcome, tokens])).toEqual([
      ["refused", 0],
      ["completed", 1],
    ]);
    expect(report.refused).toBe(1);
  });

  it("computes a shared prefix once while it is in the cache", () => {
    const prefix = { key: "system", tokens: 40 };
    const ask = (at: number) => ({ at, promptTokens: 50, outputTokens: 2, prefix });
    const cached = (trace: TraceRequest[], blockCount = 100) =>
      simulate(trace, { ...options, blockCount }).requests.map(({ cachedTokens }) => cachedTokens);
    // The two full blocks of the 40 tokens.
    expect(cached([ask(0), ask(1000), ask(2000)])).toEqual([0, 32, 32]);
    // Four blocks: the second request needs all of them.
    expect(cached([ask(0), { at: 1000, promptTokens: 64, outputTokens: 1 }, ask(2000)], 4)).toEqual([0, 0, 0]);
    expect(cached([ask(0), { at: 1000, promptTokens: 32, outputTokens: 1 }, ask(2000)], 4)).toEqual([0, 0, 32]);
    // One that computes it at the same time has its own blocks.
    expect(cached([ask(0), ask(0), ask(1000)])).toEqual([0, 0, 32]);
  });

  it("counts preemptions, and finishes everything in a cache that is too small for all at once", () => {
    const trace = Array.from({ length: 20 }, (_, i) => ({ at: i, promptTokens: 20, outputTokens: 60 }));
    const report = simulate(trace, { ...options, blockCount: 16 });
    expect(report.preemptions).toBeGreaterThan(5);
    expect(report.requests.reduce((sum, { preemptions }) => sum + preemptions, 0)).toBe(report.preemptions);
    expect([report.completed, report.requests.every(({ tokens }) => tokens === 60)]).toEqual([20, true]);
  });

  it("has nothing to report of an empty trace", () => {
    const none = { p50: 0, p99: 0, max: 0 };
    expect(simulate([], options)).toMatchObject({
      duration: 0,
      throughput: 0,
      goodput: 0,
      timeToFirstToken: none,
      timeBetweenTokens: none,
      steps: [],
    });
  });

  it.each([
    [{ at: -1, promptTokens: 1, outputTokens: 1 }, -1],
    [{ at: 5, promptTokens: 1, outputTokens: 1, cancelAt: 4 }, 5],
    [{ at: 0, promptTokens: 1, outputTokens: 0 }, 0],
    [{ at: 0, promptTokens: 4, outputTokens: 1, prefix: { key: "a", tokens: 5 } }, 5],
    [{ at: 0, promptTokens: 0, outputTokens: 1 }, 0],
  ])("refuses the request %j", (request, value) => {
    expect(() => simulate([request], options)).toThrow(error("INVALID_ARGUMENT", value));
  });

  it("refuses costs of nothing and pools without blocks", () => {
    const cost = { fixed: 0, perToken: 0, perContextToken: 1 };
    expect(() => simulate([], { ...options, cost })).toThrow(error("INVALID_ARGUMENT", cost));
    expect(() => simulate([], { ...options, blockCount: 0 })).toThrow(error("INVALID_ARGUMENT", 0));
  });
});

describe("the policies on one trace", () => {
  const chats = Array.from({ length: 6 }, () => ({ at: 0, promptTokens: 10, outputTokens: 200 }));
  const long = Array.from({ length: 5 }, (_, i) => ({ at: 300 + 400 * i, promptTokens: 400, outputTokens: 20 }));
  const run = (policy: Policy, targetMilliseconds?: number) =>
    simulate([...chats, ...long], {
      ...options,
      maxSequencesPerStep: 16,
      blockCount: 1000,
      policy,
      ...(targetMilliseconds === undefined ? {} : { targetMilliseconds }),
    });

  it("differ as they say", () => {
    const reports = {
      first: run("prefill-first"),
      interleaved: run("interleaved"),
      decode: run("decode-priority"),
    };
    const { first, interleaved, decode } = reports;
    for (const { completed } of Object.values(reports)) expect(completed).toBe(11);
    // A first token: soonest when everything else pauses for it, last when it waits for everything else.
    expect(first.timeToFirstToken.p99).toBeLessThan(interleaved.timeToFirstToken.p99);
    expect(interleaved.timeToFirstToken.p99).toBeLessThan(decode.timeToFirstToken.p99);
    // The next tokens: a step of decode rows, a step with a chunk in it, or all chunks of a prompt.
    expect(decode.timeBetweenTokens.max).toBe(10 + 6);
    expect(interleaved.timeBetweenTokens.max).toBe(10 + 64);
    expect(first.timeBetweenTokens.max).toBeGreaterThan(400);
    // Mixed steps read the weights for both at once.
    expect(interleaved.duration).toBeLessThan(first.duration);
    expect(interleaved.steps.some(({ decodeRows, promptRows }) => decodeRows > 0 && promptRows > 0)).toBe(true);
    for (const report of [first, decode]) {
      expect(report.steps.some(({ decodeRows, promptRows }) => decodeRows > 0 && promptRows > 0)).toBe(false);
    }
  });

  it("keeps the time between tokens at its target while prompts run", () => {
    const { timeBetweenTokens, steps } = run("interleaved", 30);
    expect(timeBetweenTokens.p99).toBeGreaterThan(25);
    expect(timeBetweenTokens.max).toBeLessThanOrEqual(31);
    // The six prompts at the start, with nobody waiting for a next token.
    expect(steps[0]).toMatchObject({ decodeRows: 0, promptRows: 60 });
  });
});

describe("the target in milliseconds, with a model's costs", () => {
  it.each([20, 40, 80])(
    "holds p99 within a tenth of %i ms while a prompt of 4,000 tokens runs beside four chats",
    (target) => {
      const chats = Array.from({ length: 4 }, (_, i) => ({ at: 7 * i, promptTokens: 300, outputTokens: 800 }));
      const report = simulate([...chats, { at: 1000, promptTokens: 4000, outputTokens: 10 }], {
        maxTokensPerStep: 512,
        maxSequencesPerStep: 16,
        chunkSize: 512,
        blockCount: 1000,
        blockSize: 16,
        cost: { fixed: 12, perToken: 0.25, perContextToken: 0.00002 },
        targetMilliseconds: target,
      });
      const mixed = report.steps.filter(({ decodeRows, promptRows }) => decodeRows > 0 && promptRows > 64);
      expect(report.completed).toBe(5);
      expect(report.timeBetweenTokens.p99).toBeLessThan(1.1 * target);
      if (target >= 40) expect(mixed.length).toBeGreaterThan(10);
    },
  );
});

describe("clients", () => {
  it("get equal service while all of them ask for more (Sheng et al. 2024: within the cost of what runs at once)", () => {
    const next = random(7);
    const trace: TraceRequest[] = [];
    for (const [client, count, prompt, output] of [
      ["chatty", 600, 20, 10],
      ["long", 100, 200, 20],
      ["writer", 300, 10, 80],
    ] as const) {
      for (let i = 0; i < count; i++) {
        trace.push({ at: 0, client, promptTokens: prompt + next(10), outputTokens: output + next(10) });
      }
    }
    const report = simulate(trace, { ...options, blockCount: 200 });
    // Until the first of them has nothing left.
    const served = new Map<string, number>();
    const ends = new Map<string, number>();
    for (const { index, end } of report.requests) {
      const { client } = trace[index]!;
      ends.set(client!, Math.max(ends.get(client!) ?? 0, end));
    }
    const until = 0.8 * Math.min(...ends.values());
    for (const { index, end } of report.requests) {
      const { client, promptTokens, outputTokens } = trace[index]!;
      if (end <= until) served.set(client!, (served.get(client!) ?? 0) + promptTokens + 2 * outputTokens);
    }
    const shares = [...served.values()];
    expect(Math.min(...shares)).toBeGreaterThan(5000);
    // Twice the most expensive request for each that runs at once.
    expect(Math.max(...shares) - Math.min(...shares)).toBeLessThan(2 * 8 * 250);
    expect(Math.max(...shares) / Math.min(...shares)).toBeLessThan(1.15);
  });
});
