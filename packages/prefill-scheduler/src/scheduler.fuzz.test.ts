import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { Scheduler } from "./scheduler.js";
import type { StepPlan } from "./step-plan.js";

/** A client's request as the simulation knows it: how long its prompt is, and how many tokens it will generate. */
interface Request {
  promptTokens: number;
  generate: number;
  generated: number;
  blocks: number;
}

interface Limits {
  maxTokensPerStep: number;
  maxSequencesPerStep: number;
  chunkSize: number;
  blockCount: number;
  blockSize: number;
}

class Simulation {
  readonly scheduler: Scheduler<Request>;
  readonly live: Request[] = [];
  readonly counts = { operations: 0, preemptions: 0, finished: 0, aborted: 0, abortedInFlight: 0 };
  freeBlocks: number;
  /** Steps that the requests so far may take at most: the earliest moves by at least one token in every step. */
  work = 0;

  constructor(readonly limits: Limits) {
    this.freeBlocks = limits.blockCount;
    this.scheduler = new Scheduler<Request>(
      { ...limits, maxTokensPerRequest: limits.blockCount * limits.blockSize },
      {
        reserve: (request, tokens) => {
          const missing = Math.max(0, Math.ceil(tokens / limits.blockSize) - request.blocks);
          if (missing > this.freeBlocks) return false;
          this.freeBlocks -= missing;
          request.blocks += missing;
          return true;
        },
        release: (request) => {
          this.freeBlocks += request.blocks;
          request.blocks = 0;
        },
      },
    );
  }

  add(promptTokens: number, generate: number): void {
    const room = this.limits.blockCount * this.limits.blockSize;
    const prompt = 1 + (promptTokens % room);
    // The last generated token is never computed, so it needs no room.
    const request = { promptTokens: prompt, generate: 1 + (generate % (room - prompt + 1)), generated: 0, blocks: 0 };
    this.scheduler.add(request);
    this.live.push(request);
    this.work += request.promptTokens + request.generate;
    this.counts.operations++;
  }

  abort(pick: number): void {
    const [request] = this.live.splice(pick % this.live.length, 1);
    if (!request) return;
    if (!this.scheduler.abort(request)) expect.fail("a live request is unknown");
    if (request.blocks !== 0) expect.fail("an aborted request holds blocks");
    this.counts.operations++;
    this.counts.aborted++;
  }

  /** One step with every promise of the scheduler checked; `abort` strikes while it runs. */
  step(abort: number | null): void {
    const { scheduler, limits, live } = this;
    const before = live.map((request) => ({ request, ...scheduler.progress(request) }));
    const plan = scheduler.schedule();
    scheduler.checkIntegrity();
    this.checkPlan(before, plan);
    this.counts.preemptions += plan.preempted.length;

    if (abort !== null && live.length > 0) {
      this.abort(abort);
      this.counts.abortedInFlight++;
    }
    scheduler.complete(plan);
    for (const { request, sample } of plan.chunks) {
      if (!sample || !live.includes(request)) continue;
      this.counts.operations++;
      if (++request.generated < request.generate) scheduler.append(request, 1);
      else {
        scheduler.finish(request);
        live.splice(live.indexOf(request), 1);
        this.counts.finished++;
      }
    }
    scheduler.checkIntegrity();
    const held = live.reduce((sum, { blocks }) => sum + blocks, 0);
    if (held + this.freeBlocks !== limits.blockCount) expect(held + this.freeBlocks).toBe(limits.blockCount);
    if (scheduler.runningCount + scheduler.waitingCount !== live.length) expect.fail("requests got lost");
  }

  checkPlan(
    before: { request: Request; state: string; promptTokens: number; totalTokens: number; computedTokens: number }[],
    plan: StepPlan<Request>,
  ): void {
    const { limits, scheduler } = this;
    const planned = new Map(plan.chunks.map((chunk) => [chunk.request, chunk]));
    const preempted = new Set(plan.preempted);
    let tokens = 0;
    for (const { request, start, end, sample } of plan.chunks) {
      this.counts.operations++;
      tokens += end - start;
      const progress = scheduler.progress(request);
      if (start !== progress.computedTokens) expect.fail(`a chunk starts at ${start}, not ${progress.computedTokens}`);
      if (end <= start || end - start > limits.chunkSize) expect.fail(`a chunk has ${end - start} tokens`);
      if (sample !== (end === progress.totalTokens)) expect.fail("sample is wrong");
      if (request.blocks * limits.blockSize < end) expect.fail("a chunk runs without its blocks");
      if (preempted.has(request)) expect.fail("a request is both preempted and scheduled");
    }
    for (const request of preempted) if (request.blocks !== 0) expect.fail("a preempted request holds blocks");
    if (planned.size !== plan.chunks.length) expect.fail("a request stands in the plan twice");
    if (tokens !== plan.tokens || tokens > limits.maxTokensPerStep) expect.fail(`${tokens} tokens in a step`);
    if (plan.chunks.length > limits.maxSequencesPerStep) expect.fail(`${plan.chunks.length} requests in a step`);
    for (const { request, state, promptTokens, totalTokens, computedTokens } of before) {
      if (state !== "running" || preempted.has(request) || planned.has(request)) continue;
      if (totalTokens - computedTokens === 1 && computedTokens >= promptTokens) expect.fail("a decode row was skipped");
      if (tokens < limits.maxTokensPerStep && preempted.size === 0) expect.fail("rows are free and a prompt waits");
    }
    // `live` is in arrival order, so its first must move: this is what makes starvation impossible.
    const [first] = before;
    if (first && !planned.has(first.request)) expect.fail("the earliest request does not move");
  }
}

const limits = fc
  .record({
    maxTokensPerStep: fc.integer({ min: 1, max: 40 }),
    maxSequencesPerStep: fc.integer({ min: 1, max: 8 }),
    chunkSize: fc.integer({ min: 1, max: 24 }),
    blockCount: fc.integer({ min: 1, max: 24 }),
    blockSize: fc.integer({ min: 1, max: 5 }),
  })
  .map((record) => ({
    ...record,
    maxSequencesPerStep: Math.min(record.maxSequencesPerStep, record.maxTokensPerStep),
  }));

const event = fc.oneof(
  { weight: 5, arbitrary: fc.constant(["step"] as const) },
  { weight: 2, arbitrary: fc.tuple(fc.constant("add" as const), fc.nat(60), fc.nat(40)) },
  { weight: 1, arbitrary: fc.tuple(fc.constant("abort" as const), fc.nat(1000)) },
  { weight: 1, arbitrary: fc.tuple(fc.constant("abortInFlight" as const), fc.nat(1000)) },
);

describe("a random history", () => {
  it("keeps every promise over 100,000 operations and ends empty", { timeout: 60_000 }, () => {
    const sums = { operations: 0, preemptions: 0, finished: 0, aborted: 0, abortedInFlight: 0 };
    fc.assert(
      fc.property(limits, fc.array(event, { minLength: 100, maxLength: 200, size: "max" }), (sizes, script) => {
        const simulation = new Simulation(sizes);
        for (const [kind, first, second] of script) {
          if (kind === "add") simulation.add(first!, second!);
          else if (kind === "abort") simulation.abort(first!);
          else simulation.step(kind === "abortInFlight" ? first! : null);
        }
        for (let steps = 0; simulation.live.length > 0; steps++) {
          if (steps > simulation.work) expect.fail("requests starve");
          simulation.step(null);
        }
        expect(simulation.freeBlocks).toBe(sizes.blockCount);
        expect([simulation.scheduler.runningCount, simulation.scheduler.waitingCount]).toEqual([0, 0]);
        for (const key of Object.keys(sums) as (keyof typeof sums)[]) sums[key] += simulation.counts[key];
      }),
      { seed: 4, numRuns: 1000, interruptAfterTimeLimit: 20_000 },
    );
    // The histories must reach what they are meant to test.
    expect(sums.operations).toBeGreaterThan(100_000);
    expect(sums.preemptions).toBeGreaterThan(1000);
    expect(sums.finished).toBeGreaterThan(1000);
    expect(sums.abortedInFlight).toBeGreaterThan(1000);
  });
});
