import { type EngineName, type EngineProcess, type Job, type Task, withEngines } from "../engines/engine.js";
import type { ReadBound } from "../memory/read-bound.js";

/** How much is run. */
export interface Workload {
  readonly decodeTokens: number;
  readonly promptTokens: number;
  readonly batchTokens: number;
  /** How often in a round the engines decode in turn: memory changes its speed within seconds. */
  readonly turns: number;
  /** How often in a round every number of rows is timed. */
  readonly rowRepeats: number;
}

export const FULL: Workload = { decodeTokens: 64, promptTokens: 512, batchTokens: 16, turns: 3, rowRepeats: 3 };
export const QUICK: Workload = { decodeTokens: 16, promptTokens: 128, batchTokens: 8, turns: 1, rowRepeats: 1 };

export const BATCH = 16;
export const LONG_CONTEXT = 4096;
const LONG_TOKENS = 96;
const MOST_ROWS = 64;

/** What is measured of both engines: tokens a second, but for the seconds of loading. */
export type Measure = "decode" | "prefill" | "batch" | "long" | "longKv8" | "load";

/** All that was measured of an engine, and, of Niwaki, the bytes of its packed weights. */
export type Samples = Partial<Record<Measure | "weightBytes", number[]>>;

/** All that was measured of a model. */
export interface Measured {
  readonly niwaki: Samples;
  readonly nodeLlamaCpp: Samples;
  /** What Niwaki's decoding read, and what could be read. */
  readonly reading: Partial<Record<Measure, Reading[]>>;
}

/** Bytes a second. */
export interface Reading {
  /** Weights and, at the long context, keys and values, for each token. */
  readonly decoding: number;
  /** Reading alone: the mean of right before and right after. */
  readonly alone: number;
}

/** What every measurement takes. */
export interface Setup {
  readonly path: string;
  /** Bytes of weights that a decoded token reads. */
  readonly decodedBytes: number;
  readonly threads: number;
  readonly workload: Workload;
  readonly bound: ReadBound;
}

/** One sequence: decoding after a short prompt, and a long prompt. */
export async function measureOne(setup: Setup, round: number, into: Measured): Promise<void> {
  const { promptTokens, turns } = setup.workload;
  await compare(setup, { sequences: 1, contextTokens: 2 * promptTokens }, into, async (ours, theirs) => {
    for (let turn = 0; turn < turns; turn++) {
      const task = shortTask(setup, round, turn);
      await decodeBesideReading(setup, ours, task, "decode", into);
      add(into.nodeLlamaCpp, "decode", await decode(theirs, task));
    }
    await beforeAndAfter(ours, theirs, "prefill", into, async (engine, time) => {
      const { firstTokenSeconds } = await engine.run({
        prompts: 1,
        promptTokens,
        tokens: 1,
        seed: seed(round, turns + time),
      });
      return promptTokens / firstTokenSeconds;
    });
  });
}

/** Sixteen sequences that decode together after short prompts. */
export async function measureBatch(setup: Setup, round: number, into: Measured): Promise<void> {
  const tokens = setup.workload.batchTokens;
  await compare(setup, { sequences: BATCH, contextTokens: 256 }, into, async (ours, theirs) => {
    await beforeAndAfter(ours, theirs, "batch", into, (engine, time) =>
      decode(engine, { prompts: BATCH, promptTokens: 4, tokens, seed: seed(round, time) }),
    );
  });
}

/** Decoding at the long context, Niwaki with both types of KV. */
export async function measureLong(setup: Setup, rounds: number, into: Measured): Promise<void> {
  const contextTokens = LONG_CONTEXT + LONG_TOKENS;
  const niwaki = job(setup, "niwaki", { sequences: 1, contextTokens });
  const jobs = [niwaki, { ...niwaki, kvType: "q8" }, { ...niwaki, engine: "node-llama-cpp" }] as const;
  // Half of the tokens come before the named context, half after it. Each engine computes the prompt once.
  const task = { prompts: 1, promptTokens: LONG_CONTEXT - LONG_TOKENS / 2, tokens: LONG_TOKENS, seed: seed(0, 0) };
  await withEngines(jobs, async ([f16, q8, theirs]) => {
    for (const engine of [f16, q8, theirs]) await engine.run({ ...task, tokens: 1 });
    for (let turn = 0; turn < rounds * setup.workload.turns; turn++) {
      for (const [measure, ours] of [
        ["long", f16],
        ["longKv8", q8],
      ] as const) {
        const kvBytes = (ours.loaded.kvBytes! * LONG_CONTEXT) / contextTokens;
        await decodeBesideReading(setup, ours, task, measure, into, kvBytes);
      }
      add(into.nodeLlamaCpp, "long", await decode(theirs, task));
    }
  });
}

/** Niwaki's decoding alone. */
export async function measureAlone(setup: Setup, round: number, into: Measured): Promise<void> {
  await withEngines([job(setup, "niwaki", { sequences: 1, contextTokens: 256 })], async ([ours]) => {
    for (let turn = 0; turn < setup.workload.turns; turn++)
      await decodeBesideReading(setup, ours, shortTask(setup, round, turn), "decode", into);
  });
}

/** Seconds of a step of 1, 2, … 64 rows, the last of them with logits: the time of a prompt of so many tokens. */
export async function measureRows(setup: Setup, round: number, into: number[][]): Promise<void> {
  const { rowRepeats } = setup.workload;
  const room = { sequences: 1, contextTokens: 2 * MOST_ROWS };
  await withEngines([job(setup, "niwaki", room)], async ([ours]) => {
    for (let repeat = 0; repeat < rowRepeats; repeat++) {
      for (let rows = 1; rows <= MOST_ROWS; rows++) {
        const task = { prompts: 1, promptTokens: rows, tokens: 1, seed: seed(round, MOST_ROWS * repeat + rows) };
        into[rows - 1] ??= [];
        into[rows - 1]!.push((await ours.run(task)).firstTokenSeconds);
      }
    }
  });
}

type Room = Pick<Job, "sequences" | "contextTokens">;

function job({ path, threads }: Setup, engine: EngineName, room: Room): Job {
  return { engine, path, threads, ...room, warmUp: true };
}

/** Loads both engines for as long as `use` takes. */
function compare(
  setup: Setup,
  room: Room,
  into: Measured,
  use: (ours: EngineProcess, theirs: EngineProcess) => Promise<void>,
): Promise<void> {
  return withEngines([job(setup, "niwaki", room), job(setup, "node-llama-cpp", room)], ([ours, theirs]) => {
    add(into.niwaki, "load", ours.loaded.loadSeconds);
    add(into.niwaki, "weightBytes", ours.loaded.weightBytes!);
    add(into.nodeLlamaCpp, "load", theirs.loaded.loadSeconds);
    return use(ours, theirs);
  });
}

/** Niwaki before and after the peer, whose turn takes many times as long: both meet the same minute. */
async function beforeAndAfter(
  ours: EngineProcess,
  theirs: EngineProcess,
  measure: Measure,
  into: Measured,
  run: (engine: EngineProcess, time: number) => Promise<number>,
): Promise<void> {
  add(into.niwaki, measure, await run(ours, 0));
  add(into.nodeLlamaCpp, measure, await run(theirs, 0));
  add(into.niwaki, measure, await run(ours, 1));
}

function shortTask({ workload }: Setup, round: number, turn: number): Task {
  return { prompts: 1, promptTokens: 16, tokens: workload.decodeTokens, seed: seed(round, turn) };
}

/** No two tasks of a process may begin alike, unless that is meant. */
function seed(round: number, task: number): number {
  return 1000 * round + task + 1;
}

async function decodeBesideReading(
  { bound, decodedBytes }: Setup,
  engine: EngineProcess,
  task: Task,
  measure: Measure,
  into: Measured,
  kvBytes = 0,
): Promise<void> {
  const before = await bound.measure();
  const tokensPerSecond = await decode(engine, task);
  const alone = (before + (await bound.measure())) / 2;
  add(into.niwaki, measure, tokensPerSecond);
  into.reading[measure] ??= [];
  into.reading[measure].push({ decoding: tokensPerSecond * (decodedBytes + kvBytes), alone });
}

async function decode(engine: EngineProcess, task: Task): Promise<number> {
  return (await engine.run(task)).tokensPerSecond!;
}

function add(samples: Samples, measure: keyof Samples, value: number): void {
  samples[measure] ??= [];
  samples[measure].push(value);
}
