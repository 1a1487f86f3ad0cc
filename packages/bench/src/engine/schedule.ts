import { PagedKv, type Sequence } from "@niwaki/paged-kv";
import { Scheduler, type StepPlan } from "@niwaki/prefill-scheduler";
import type { Quantiles, ScheduleReport } from "./job.js";
import { quantiles } from "./quantiles.js";

const RUNNING = 256;
const PROMPT_TOKENS = 32;
const LONG_PROMPT_TOKENS = 4000;
const LONG_PROMPTS = 64;
const STEPS_PER_ROUND = 100;
const WARM_UP_STEPS = 500;
const BLOCK_SIZE = 16;

interface Request {
  readonly promptTokens: number;
  readonly sequence: Sequence;
}

/** Times of `schedule()` with 256 requests that decode, their blocks in a real cache, without and with prompts beside. */
export function measureSchedule(rounds: number): ScheduleReport {
  const steps = WARM_UP_STEPS + rounds * STEPS_PER_ROUND;
  return { decoding: scheduleTimes(steps, 0), withPrompts: scheduleTimes(steps, LONG_PROMPTS) };
}

function scheduleTimes(steps: number, longPrompts: number): Quantiles {
  const blocks = (tokens: number) => Math.ceil(tokens / BLOCK_SIZE);
  const blockCount = RUNNING * blocks(PROMPT_TOKENS + steps + 100) + (longPrompts + 1) * blocks(LONG_PROMPT_TOKENS);
  const kv = new PagedKv({ blockCount, blockSize: BLOCK_SIZE });
  const scheduler = new Scheduler<Request>(
    {
      maxTokensPerStep: 512,
      maxSequencesPerStep: RUNNING + 4,
      chunkSize: 256,
      maxTokensPerRequest: blockCount * BLOCK_SIZE,
      targetMilliseconds: 60,
    },
    {
      reserve: (request, tokens) => request.sequence.ensureCapacity(tokens),
      release: (request) => request.sequence.truncate(0),
      supply: kv,
    },
  );
  const add = (promptTokens: number) => scheduler.add({ promptTokens, sequence: kv.create() });
  const tokens = new Int32Array(LONG_PROMPT_TOKENS);
  const one = new Int32Array(1);
  /** The plan ran; nobody looks at it afterwards. */
  const run = (plan: StepPlan<Request>) => {
    scheduler.complete(plan, 10 + 0.1 * plan.tokens);
    for (const { request, start, end, sample } of plan.chunks) {
      // Without garbage of its own, whose collection might fall into what is timed.
      request.sequence.advance(end - start === 1 ? one : tokens.subarray(0, end - start));
      if (!sample) continue;
      if (request.promptTokens === PROMPT_TOKENS) {
        scheduler.append(request, 1);
      } else {
        // A long prompt makes room for the next one.
        scheduler.finish(request);
        request.sequence.drop();
        add(LONG_PROMPT_TOKENS);
      }
    }
    scheduler.recycle(plan);
  };
  for (let i = 0; i < RUNNING; i++) add(PROMPT_TOKENS);
  while (scheduler.waitingCount > 0) run(scheduler.schedule());
  for (let i = 0; i < longPrompts; i++) add(LONG_PROMPT_TOKENS);
  const times: number[] = [];
  for (let step = 0; step < steps; step++) {
    const begun = performance.now();
    const plan = scheduler.schedule();
    const ended = performance.now();
    if (step >= WARM_UP_STEPS) times.push((ended - begun) * 1000);
    const prompts = plan.chunks.length - RUNNING;
    const expected = longPrompts > 0 ? prompts > 0 : prompts === 0;
    if (!expected && step >= WARM_UP_STEPS) throw new Error(`step ${step} has ${prompts} prompts beside decode rows`);
    run(plan);
  }
  return quantiles(times);
}
