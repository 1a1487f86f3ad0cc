import { expect } from "vitest";
import type { BlockBudget, BlockSupply } from "./block-budget.js";
import { Scheduler } from "./scheduler.js";
import type { SchedulerOptions } from "./scheduler-options.js";
import type { StepPlan } from "./step-plan.js";

export interface TestRequest {
  name: string;
  promptTokens: number;
  priority?: number;
  client?: string;
}

export const error = (code: string, value?: unknown) =>
  expect.objectContaining({ name: "SchedulerError", code, value });

/** Blocks of `blockSize` tokens, counted per request. */
export class TestBlocks implements BlockBudget<TestRequest> {
  readonly held = new Map<TestRequest, number>();

  constructor(
    public free: number,
    readonly blockSize: number,
  ) {}

  reserve(request: TestRequest, tokens: number): boolean {
    const held = this.held.get(request) ?? 0;
    const missing = Math.max(0, Math.ceil(tokens / this.blockSize) - held);
    if (missing > this.free) return false;
    this.free -= missing;
    this.held.set(request, held + missing);
    return true;
  }

  release(request: TestRequest): void {
    this.free += this.held.get(request) ?? 0;
    this.held.delete(request);
  }
}

/** The same with a supply, and with hits: `cached` tokens of a request are computed already, in blocks of their own. */
export class TestSupply extends TestBlocks {
  readonly cached = new Map<TestRequest, number>();
  readonly supply: BlockSupply;
  matches = 0;

  constructor(blockCount: number, blockSize: number) {
    super(blockCount, blockSize);
    const blocks = this;
    this.supply = {
      blockSize,
      blockCount,
      get freeBlocks() {
        return blocks.free;
      },
    };
  }

  match(request: TestRequest): number {
    this.matches++;
    const cached = this.cached.get(request) ?? 0;
    return cached > 0 && this.reserve(request, cached) ? cached : 0;
  }
}

/** A scheduler and the loop around it, as an engine has it: every request that reached its end gets a token. */
export function make(options: Partial<SchedulerOptions> = {}, blocks = new TestBlocks(10_000, 16)) {
  const scheduler = new Scheduler<TestRequest>(
    { maxTokensPerStep: 64, maxSequencesPerStep: 8, chunkSize: 64, maxTokensPerRequest: 1000, ...options },
    blocks,
  );
  const add = (name: string, promptTokens: number, rest: { priority?: number; client?: string } = {}): TestRequest => {
    const request = { name, promptTokens, ...rest };
    scheduler.add(request);
    return request;
  };
  const step = (milliseconds?: number): StepPlan<TestRequest> => {
    const plan = scheduler.schedule();
    scheduler.checkIntegrity();
    scheduler.complete(plan, milliseconds);
    for (const { request, sample } of plan.chunks) if (sample) scheduler.append(request, 1);
    scheduler.checkIntegrity();
    return plan;
  };
  return { scheduler, blocks, add, step };
}

export const rows = (plan: StepPlan<TestRequest>) =>
  plan.chunks.map(({ request, start, end }) => [request.name, start, end]);

export const names = (requests: readonly TestRequest[]) => requests.map(({ name }) => name);

/** The names in a plan, in order. */
export const scheduled = (plan: StepPlan<TestRequest>) => names(plan.chunks.map(({ request }) => request));
