import type { EngineName, Task } from "../engines/engine.js";
import { readBound } from "../memory/read-bound.js";
import { runJob } from "../run-program.js";
import { median } from "../statistics.js";

/** How much is run for one sample. */
export interface Workload {
  readonly decodeTokens: number;
  readonly promptTokens: number;
  readonly batchTokens: number;
  /** How often every number of rows is timed. */
  readonly rowRepeats: number;
}

export const FULL: Workload = { decodeTokens: 32, promptTokens: 512, batchTokens: 16, rowRepeats: 5 };
export const QUICK: Workload = { decodeTokens: 16, promptTokens: 128, batchTokens: 8, rowRepeats: 1 };

export const BATCH = 16;
export const LONG_CONTEXT = 4096;
const LONG_TOKENS = 96;
export const MOST_ROWS = 64;

/** One process's figures: tokens a second, but for the time to load and the bytes of weights in memory. */
export type Sample = Readonly<Partial<Record<Measure | "weightBytes", number>>>;
export type Measure = "decode" | "prefill" | "batch" | "long" | "longKv8" | "load";

/** One sequence: decoding after a short prompt, a long prompt, and, if asked for, decoding at a long context. */
export async function measureOne(
  engine: EngineName,
  path: string,
  threads: number,
  workload: Workload,
  round: number,
  long: boolean,
): Promise<Sample> {
  const { decodeTokens, promptTokens } = workload;
  const seed = 10 * round;
  const tasks: Task[] = [
    { prompts: 1, promptTokens: 16, tokens: decodeTokens, seed: seed + 1 },
    { prompts: 1, promptTokens, tokens: 1, seed: seed + 2 },
  ];
  if (long) tasks.push(longTask(round));
  const contextTokens = long ? LONG_CONTEXT + LONG_TOKENS : 2 * promptTokens;
  const report = await runJob({ engine, path, threads, sequences: 1, contextTokens, warmUp: true, tasks });
  const [decode, prefill, atLength] = report.timings;
  return {
    load: report.loadSeconds,
    ...(report.weightBytes === null ? {} : { weightBytes: report.weightBytes }),
    decode: decode!.tokensPerSecond!,
    prefill: promptTokens / prefill!.firstTokenSeconds,
    ...(atLength === undefined ? {} : { long: atLength.tokensPerSecond! }),
  };
}

/** Niwaki's decoding at the long context. */
export async function measureLong(path: string, threads: number, kvType: "f16" | "q8", round: number): Promise<Sample> {
  const contextTokens = LONG_CONTEXT + LONG_TOKENS;
  const tasks = [longTask(round)];
  const job = {
    engine: "niwaki",
    path,
    threads,
    sequences: 1,
    contextTokens,
    kvType,
    warmUp: true,
    tasks,
  } as const;
  const tokensPerSecond = (await runJob(job)).timings[0]!.tokensPerSecond!;
  return kvType === "q8" ? { longKv8: tokensPerSecond } : { long: tokensPerSecond };
}

/** Half of the tokens come before the named context, half after it. */
function longTask(round: number): Task {
  return { prompts: 1, promptTokens: LONG_CONTEXT - LONG_TOKENS / 2, tokens: LONG_TOKENS, seed: 10 * round + 3 };
}

/** Sixteen sequences that decode together after short prompts. */
export async function measureBatch(
  engine: EngineName,
  path: string,
  threads: number,
  workload: Workload,
  round: number,
): Promise<Sample> {
  const tasks = [{ prompts: BATCH, promptTokens: 4, tokens: workload.batchTokens, seed: 10 * round + 4 }];
  const report = await runJob({ engine, path, threads, sequences: BATCH, contextTokens: 256, warmUp: true, tasks });
  return { batch: report.timings[0]!.tokensPerSecond! };
}

/** Decoding of one sequence, and what the memory gave meanwhile. */
export interface BoundSample {
  readonly tokensPerSecond: number;
  /** Bytes a second, the mean of a reading right before and one right after. */
  readonly readBound: number;
}

export async function measureAgainstBound(
  path: string,
  threads: number,
  workload: Workload,
  round: number,
): Promise<BoundSample> {
  const tasks = [{ prompts: 1, promptTokens: 16, tokens: 2 * workload.decodeTokens, seed: 10 * round + 1 }];
  const job = { engine: "niwaki", path, threads, sequences: 1, contextTokens: 256, warmUp: true, tasks } as const;
  const before = await readBound(threads);
  const { timings } = await runJob(job);
  const after = await readBound(threads);
  return { tokensPerSecond: timings[0]!.tokensPerSecond!, readBound: (before + after) / 2 };
}

/** Seconds of a step of 1, 2, … 64 rows, the last of them with logits: the time of a prompt of so many tokens. */
export async function measureRows(path: string, threads: number, workload: Workload): Promise<number[]> {
  const tasks: Task[] = [];
  for (let repeat = 0; repeat < workload.rowRepeats; repeat++) {
    for (let rows = 1; rows <= MOST_ROWS; rows++) {
      tasks.push({ prompts: 1, promptTokens: rows, tokens: 1, seed: tasks.length + 1 });
    }
  }
  const report = await runJob({
    engine: "niwaki",
    path,
    threads,
    sequences: 1,
    contextTokens: 2 * MOST_ROWS,
    warmUp: true,
    tasks,
  });
  return Array.from({ length: MOST_ROWS }, (_, row) =>
    median(
      Array.from(
        { length: workload.rowRepeats },
        (_, repeat) => report.timings[repeat * MOST_ROWS + row]!.firstTokenSeconds,
      ),
    ),
  );
}
