import { describe, expect, it } from "vitest";
import type { Progress } from "./entry.js";
import { Scheduler } from "./scheduler.js";
import type { Policy } from "./scheduler-options.js";
import type { StepPlan } from "./step-plan.js";
import { random } from "./test-random.js";

/** A client's request, and what the model of the test knows of it. */
interface Request {
  promptTokens: number;
  priority: number;
  client: string;
  /** Requests are compared where all else is equal. */
  group: number;
  arrival: number;
  generate: number;
  generated: number;
  /** Tokens that a prefix cache would know, once it was computed before or by another. */
  cached: number;
  blocks: number;
  /** What the scheduler should say of it. */
  computed: number;
  total: number;
  running: boolean;
  removed: boolean;
}

interface Limits {
  maxTokensPerStep: number;
  maxSequencesPerStep: number;
  chunkSize: number;
  blockCount: number;
  blockSize: number;
  policy: Policy;
  watermark: number;
  agingTokens: number;
  targetMilliseconds?: number;
  /** Whether the scheduler sees how many blocks there are, and finds prefixes. */
  supply: boolean;
  /** Whether a plan is completed before it runs, as with several steps under way. */
  early: boolean;
}

const counts = {
  operations: 0,
  preemptions: 0,
  finished: 0,
  aborted: 0,
  abortedInFlight: 0,
  hits: 0,
  pausedDecodes: 0,
  chunksBesideDecodes: 0,
  retracted: 0,
  followed: 0,
};

class Simulation {
  readonly scheduler: Scheduler<Request>;
  readonly live: Request[] = [];
  freeBlocks: number;
  /** Steps that the requests so far may take at most, all of them one after the other. */
  work = 0;
  arrivals = 0;
  /** How often blocks could not be had since the plan was begun. */
  shortages = 0;
  /** Requests whose next token is known with the next step only. */
  readonly held: Request[] = [];

  constructor(
    readonly limits: Limits,
    readonly next: (limit: number) => number,
  ) {
    const { blockSize, blockCount, supply, early: _, ...options } = limits;
    this.freeBlocks = blockCount;
    const simulation = this;
    const budget = {
      reserve: (request: Request, tokens: number) => this.reserve(request, tokens),
      release: (request: Request) => {
        this.freeBlocks += request.blocks;
        request.blocks = 0;
      },
    };
    const ahead = {
      match: (request: Request) => {
        if (request.blocks > 0) expect.fail("a hit is asked for by a request that holds blocks");
        return request.cached > 0 && this.reserve(request, request.cached) ? request.cached : 0;
      },
      supply: {
        blockSize,
        blockCount,
        get freeBlocks() {
          return simulation.freeBlocks;
        },
      },
    };
    this.scheduler = new Scheduler<Request>(
      { ...options, maxTokensPerRequest: blockCount * blockSize },
      supply ? { ...budget, ...ahead } : budget,
    );
  }

  reserve(request: Request, tokens: number): boolean {
    const missing = Math.max(0, Math.ceil(tokens / this.limits.blockSize) - request.blocks);
    if (missing > this.freeBlocks) {
      this.shortages++;
      return false;
    }
    this.freeBlocks -= missing;
    request.blocks += missing;
    return true;
  }

  add(): void {
    const { next, limits } = this;
    const room = limits.blockCount * limits.blockSize;
    const promptTokens = 1 + next(Math.min(room, 60));
    const priority = next(3) - 1;
    const client = next(3);
    const request: Request = {
      promptTokens,
      priority,
      client: `${client}`,
      group: 3 * client + priority,
      arrival: this.arrivals++,
      // The last generated token is never computed, so it needs no room.
      generate: 1 + next(Math.min(room - promptTokens + 1, 40)),
      generated: 0,
      cached: limits.supply && next(3) === 0 ? limits.blockSize * next(Math.ceil(promptTokens / limits.blockSize)) : 0,
      blocks: 0,
      computed: 0,
      total: promptTokens,
      running: false,
      removed: false,
    };
    this.scheduler.add(request);
    this.live.push(request);
    this.work += promptTokens + request.generate;
    counts.operations++;
  }

  abort(): void {
    const request = this.live[this.next(this.live.length)];
    if (!request) return;
    if (!this.scheduler.abort(request)) expect.fail("a live request is unknown");
    this.forget(request);
    counts.aborted++;
  }

  forget(request: Request): void {
    this.live.splice(this.live.indexOf(request), 1);
    request.removed = true;
    if (request.blocks !== 0) expect.fail("a removed request holds blocks");
    if (this.scheduler.abort(request)) expect.fail("a removed request is known");
    counts.operations++;
  }

  /** One step with every promise of the scheduler checked; `abort` strikes while it runs. */
  step(abort: boolean): void {
    const { scheduler, limits } = this;
    this.shortages = 0;
    for (const request of this.held.splice(0)) if (!request.removed) this.append(request);
    const plan = scheduler.schedule();
    if (plan.preempted.length > this.shortages) expect.fail("a request lost its blocks to nobody");
    this.check(plan);
    counts.preemptions += plan.preempted.length;
    const following = limits.early ? 0 : this.following(plan);
    if (limits.early) {
      scheduler.complete(plan);
      // The tokens to come have their rows before they are known.
      for (const { request, sample } of plan.chunks) if (sample && mayGoOn(request)) this.append(request);
    }
    if (abort && this.live.length > 0) {
      this.abort();
      counts.abortedInFlight++;
    }
    if (limits.early) scheduler.observe(plan, 10 + plan.tokens);
    else scheduler.complete(plan, 10 + plan.tokens);
    for (const { request, end, sample } of plan.chunks) {
      if (request.removed) continue;
      request.computed = end;
      counts.operations++;
      if (sample) this.sample(request);
    }
    for (let i = 0; i < following; i++) this.follow(plan);
    if (this.next(2) === 0) scheduler.recycle(plan);
    scheduler.checkIntegrity();
    let blocks = this.freeBlocks;
    for (const request of this.live) blocks += request.blocks;
    if (blocks !== limits.blockCount) expect(blocks).toBe(limits.blockCount);
    if (scheduler.runningCount + scheduler.waitingCount !== this.live.length) expect.fail("requests got lost");
  }

  /** Decode steps that follow the plan's own: fewer than may, as somebody wants to go on otherwise. */
  following(plan: StepPlan<Request>): number {
    const { chunks } = plan;
    let most = this.next(20);
    for (const { request } of chunks) most = Math.min(most, Math.max(0, request.generate - request.generated - 1));
    const waits = this.live.some((request) => !request.running || !chunks.some((chunk) => chunk.request === request));
    const steps = this.scheduler.following(plan, most);
    if (steps > 0 && (waits || steps > most)) expect.fail("steps follow that may not");
    for (const { request, end } of chunks) {
      if (request.blocks * this.limits.blockSize < end + steps) expect.fail("steps follow without their blocks");
    }
    return this.next(steps + 1);
  }

  follow({ chunks }: StepPlan<Request>): void {
    for (const { request } of chunks) {
      if (request.removed) continue;
      this.scheduler.advance(request, 1);
      request.computed++;
      counts.followed++;
      this.sample(request);
    }
  }

  append(request: Request): void {
    this.scheduler.append(request, 1);
    request.total++;
  }

  sample(request: Request): void {
    const goesOn = mayGoOn(request);
    request.generated++;
    if (goesOn) {
      if (!this.limits.early) {
        this.append(request);
      } else if (this.next(4) === 0) {
        this.scheduler.retract(request, 1);
        request.total--;
        this.held.push(request);
        counts.retracted++;
      }
      return;
    }
    this.scheduler.finish(request);
    this.forget(request);
    counts.finished++;
  }

  check(plan: StepPlan<Request>): void {
    const { limits, live, scheduler } = this;
    const planned = new Set<Request>();
    const ran = new Set(live.filter(({ running }) => running));
    for (const request of plan.preempted) {
      if (!request.running || request.blocks !== 0) expect.fail("a preempted request did not run, or holds blocks");
      request.running = false;
      request.computed = 0;
      // Its full blocks stay in the cache.
      if (limits.supply && this.next(2) === 0) request.cached = limits.blockSize * this.next(3);
      request.cached = Math.min(request.cached, limits.blockSize * Math.floor((request.total - 1) / limits.blockSize));
    }
    let tokens = 0;
    let decodes = 0;
    for (const { request, start, end, sample } of plan.chunks) {
      if (!request.running) {
        if (plan.preempted.length > 0) expect.fail("a request is admitted beside a preemption");
        if (start !== 0 && start !== request.cached) expect.fail("a request starts in the middle");
        if (start > 0) counts.hits++;
        request.running = true;
        request.computed = start;
      }
      tokens += end - start;
      if (planned.has(request)) expect.fail("a request stands in the plan twice");
      planned.add(request);
      if (start !== request.computed) expect.fail(`a chunk starts at ${start}, not ${request.computed}`);
      if (end <= start || end - start > limits.chunkSize) expect.fail(`a chunk has ${end - start} tokens`);
      if (sample !== (end === request.total)) expect.fail("sample is wrong");
      if (request.blocks * limits.blockSize < end) expect.fail("a chunk runs without its blocks");
      // Whoever is admitted counts as a prompt, also behind a hit that leaves it one token.
      if (ran.has(request) && isDecode(request)) decodes++;
    }
    if (tokens !== plan.tokens || tokens > limits.maxTokensPerStep) expect.fail(`${tokens} tokens in a step`);
    if (scheduler.runningCount > limits.maxSequencesPerStep) expect.fail(`${scheduler.runningCount} requests run`);
    if (live.length > 0 && tokens === 0) expect.fail("nothing moves");
    this.checkOrder(plan, ran);
    this.checkPolicy(plan, planned, ran, decodes);
    for (const request of live) this.checkProgress(request, scheduler.progress(request));
  }

  /** Of one client and priority, those that came first run first and lose their blocks last. */
  checkOrder(plan: StepPlan<Request>, ran: ReadonlySet<Request>): void {
    const waiting = new Map<number, number>();
    for (const { running, group, arrival } of this.live) {
      if (!running) waiting.set(group, Math.min(arrival, waiting.get(group) ?? Infinity));
    }
    for (const { request } of plan.chunks) {
      if (ran.has(request)) continue;
      if (request.arrival > (waiting.get(request.group) ?? Infinity)) expect.fail("a request passed an earlier one");
    }
    for (const request of plan.preempted) {
      for (const other of ran) {
        if (other.running && other.group === request.group && other.arrival > request.arrival) {
          expect.fail("a request lost its blocks to a later one");
        }
      }
    }
  }

  checkPolicy(plan: StepPlan<Request>, planned: Set<Request>, ran: ReadonlySet<Request>, decodes: number): void {
    const { policy, maxTokensPerStep, targetMilliseconds } = this.limits;
    const hasPrompts = planned.size > decodes;
    if (
      policy !== "interleaved" &&
      decodes > 0 &&
      [...ran].some((request) => planned.has(request) && !isDecode(request))
    ) {
      expect.fail("prompts stand beside decode rows");
    }
    if (policy === "interleaved" && hasPrompts && decodes > 0) counts.chunksBesideDecodes++;
    for (const request of ran) {
      if (!request.running || planned.has(request)) continue;
      if (isDecode(request)) {
        if (policy !== "prefill-first") expect.fail("a decode row was skipped");
        if (!hasPrompts) expect.fail("a decode row was skipped for nothing");
        counts.pausedDecodes++;
      } else {
        if (policy === "decode-priority" && decodes > 0) continue;
        if (targetMilliseconds !== undefined && decodes > 0) continue;
        if (plan.tokens < maxTokensPerStep && plan.preempted.length === 0)
          expect.fail("rows are free and a prompt waits");
      }
    }
  }

  checkProgress(request: Request, progress: Progress): void {
    const { state, computedTokens, totalTokens } = progress;
    if (state !== (request.running ? "running" : "waiting")) expect.fail(`a request is ${state}`);
    if (computedTokens !== request.computed) expect.fail(`${computedTokens} computed, not ${request.computed}`);
    if (totalTokens !== request.total) expect.fail(`${totalTokens} tokens, not ${request.total}`);
  }

  /** No newcomers from here on: everything ends, in as many steps as it can take. */
  drain(): void {
    const most = this.work * (1 + this.live.length);
    for (let steps = 0; this.live.length > 0; steps++) {
      if (steps > most) expect.fail("requests starve");
      this.step(false);
    }
    expect([this.freeBlocks, this.scheduler.runningCount, this.scheduler.waitingCount]).toEqual([
      this.limits.blockCount,
      0,
      0,
    ]);
  }
}

function mayGoOn({ generated, generate }: Request): boolean {
  return generated + 1 < generate;
}

function isDecode({ total, computed, promptTokens }: Request): boolean {
  return total - computed === 1 && computed >= promptTokens;
}

function limits(next: (limit: number) => number): Limits {
  const policy = (["interleaved", "interleaved", "prefill-first", "decode-priority"] as const)[next(4)]!;
  const maxTokensPerStep = 1 + next(40);
  return {
    maxTokensPerStep,
    maxSequencesPerStep: Math.min(1 + next(12), maxTokensPerStep),
    chunkSize: 1 + next(24),
    blockCount: 1 + next(40),
    blockSize: 1 + next(5),
    policy,
    watermark: next(2) / 10,
    agingTokens: 1 + next(2000),
    ...(policy === "interleaved" && next(2) === 0 ? { targetMilliseconds: 5 + next(40) } : {}),
    supply: next(2) === 0,
    early: next(3) === 0,
  };
}

describe("a random history", () => {
  it("keeps every promise over a million operations and ends empty", { timeout: 120_000 }, () => {
    const next = random(4);
    while (counts.operations < 1_000_000) {
      const simulation = new Simulation(limits(next), next);
      for (let i = 0; i < 400; i++) {
        const event = next(9);
        if (event < 2 && simulation.live.length < 30) simulation.add();
        else if (event === 2) simulation.abort();
        else simulation.step(event === 3);
      }
      simulation.drain();
    }
    // The histories must reach what they are meant to test.
    for (const [what, count] of Object.entries(counts)) {
      if (count < 5000) expect.fail(`only ${count} ${what}`);
    }
  });
});
