import type { Plan, Step, StepResult } from "@niwaki/kernels-native";
import { type KvStorage, PagedKv, type Sequence } from "@niwaki/paged-kv";
import { type Policy, Scheduler, type StepPlan } from "@niwaki/prefill-scheduler";
import { EngineStatistics, type Statistics, type StepRecord } from "./engine-statistics.js";
import { type CheckedSampling, sampleSpec } from "./options.js";
import { SharedPrefixes } from "./shared-prefixes.js";

/** A token that was chosen, with log-probabilities if they were asked for. */
export type Sample = StepResult["samples"][number];

/** One request as the engine sees it: tokens in, tokens out. The callbacks run between steps. */
export interface EngineRequest {
  readonly promptIds: readonly number[];
  /** How to choose tokens; absent for a request that only wants its prompt computed. */
  readonly sampling?: CheckedSampling;
  /** Lower comes first. */
  readonly priority?: number | undefined;
  /** Clients get equal shares. */
  readonly client?: string | undefined;
  /** Prefixes are shared among requests of the same salt only. */
  readonly cacheSalt?: string | undefined;
  /**
   * A token was chosen. Returns whether the request goes on; after false the engine forgets it. With a promise the request
   * waits, and the others go on, until it is settled.
   */
  onSample?(sample: Sample): boolean | Promise<boolean>;
  /** Logits of the prompt's rows from `start` on: [rows, vocabulary]. A request with it ends after its prompt. */
  onLogits?(start: number, logits: Float32Array): void | Promise<void>;
  /** The request ended otherwise: all logits given, or an error of the step. */
  onEnd(error?: unknown): void;
}

interface Entry {
  readonly id: number;
  readonly request: EngineRequest;
  readonly promptTokens: number;
  readonly priority: number | undefined;
  readonly client: string | undefined;
  readonly tokens: number[];
  readonly sequence: Sequence;
}

export interface EngineOptions {
  readonly vocabulary: number;
  readonly blockSize: number;
  readonly blockCount: number;
  /** Tokens of one sequence at most. */
  readonly contextLength: number;
  readonly chunkSize: number;
  readonly maxRows: number;
  readonly maxSequences: number;
  /** The pages behind the block ids. */
  readonly storage: KvStorage;
  readonly policy: Policy;
  /** Milliseconds that a step with decode rows may take. */
  readonly targetMilliseconds: number | undefined;
  /** Told of every step when it has ended. */
  readonly onStep: ((step: StepRecord) => void) | undefined;
}

/**
 * Runs every request of a model: asks the scheduler for the next step, runs it, hands out its tokens, again and again
 * while there is something to compute.
 */
export class Engine {
  readonly #plan: Plan;
  readonly #vocabulary: number;
  readonly #kv: PagedKv;
  readonly #scheduler: Scheduler<Entry>;
  readonly #entries = new Map<EngineRequest, Entry>();
  readonly #prefixes: SharedPrefixes<Entry>;
  readonly #statistics: EngineStatistics;
  #lastId = 0;
  #running: { entries: readonly Entry[]; abort: AbortController } | undefined;
  /** Entries that ended while their step ran. */
  readonly #leaving: Entry[] = [];
  #active = false;
  #loop: Promise<void> = Promise.resolve();
  /** Ends the loop's wait while all requests wait for their consumers. */
  #wake: (() => void) | undefined;

  constructor(plan: Plan, options: EngineOptions) {
    const { blockCount, blockSize, policy, targetMilliseconds } = options;
    this.#plan = plan;
    this.#vocabulary = options.vocabulary;
    const kv = new PagedKv({ blockCount, blockSize, storage: options.storage });
    this.#kv = kv;
    this.#prefixes = new SharedPrefixes(blockSize);
    this.#statistics = new EngineStatistics(options.onStep);
    this.#scheduler = new Scheduler<Entry>(
      {
        maxTokensPerStep: options.maxRows,
        maxSequencesPerStep: options.maxSequences,
        chunkSize: options.chunkSize,
        maxTokensPerRequest: options.contextLength,
        policy,
        ...(targetMilliseconds === undefined ? {} : { targetMilliseconds }),
      },
      {
        reserve: (entry, tokens) => entry.sequence.ensureCapacity(tokens),
        release: (entry) => {
          if (!this.#isRunning(entry)) entry.sequence.truncate(0);
        },
        // Logits are wanted of every row, so every row is computed.
        match: (entry) => (entry.request.onLogits === undefined ? entry.sequence.match(entry.tokens) : 0),
        supply: kv,
      },
    );
  }

  /** Takes a request; its prompt has at least one token and fits the context. */
  submit(request: EngineRequest): void {
    const entry: Entry = {
      id: ++this.#lastId,
      request,
      promptTokens: request.promptIds.length,
      priority: request.priority,
      client: request.client,
      tokens: [...request.promptIds],
      sequence: this.#kv.create({ extraKeys: request.cacheSalt ?? "" }),
    };
    this.#entries.set(request, entry);
    // What another request is computing right now is worth waiting for.
    if (request.onLogits !== undefined || !this.#prefixes.hold(entry)) this.#scheduler.add(entry);
    if (this.#active) {
      this.#wake?.();
    } else {
      this.#active = true;
      this.#loop = this.#run();
    }
  }

  /** Forgets a request at any moment. A step that computes nothing else is cancelled, also halfway through a chunk. */
  cancel(request: EngineRequest): void {
    const entry = this.#entries.get(request);
    if (entry === undefined) return;
    this.#remove(entry);
    const running = this.#running;
    if (running?.entries.every((other) => !this.#entries.has(other.request))) running.abort.abort();
    this.#wake?.();
  }

  /** Cancels everything and waits for the step that runs. */
  async close(reason: unknown): Promise<void> {
    const requests = [...this.#entries.keys()];
    for (const request of requests) this.cancel(request);
    for (const request of requests) request.onEnd(reason);
    await this.#loop;
  }

  /** Computes a prompt, as far as it is not cached, and gives the bytes of its whole blocks. */
  async *snapshot(promptIds: readonly number[], cacheSalt: string, fingerprint: string): AsyncGenerator<Uint8Array> {
    await new Promise<void>((resolve, reject) => {
      this.submit({ promptIds, cacheSalt, onEnd: (error) => (error === undefined ? resolve() : reject(error)) });
    });
    const sequence = this.#kv.create({ extraKeys: cacheSalt });
    try {
      // One token more than the prompt: a match leaves the last one to compute.
      sequence.match([...promptIds, 0]);
      yield* this.#kv.snapshot(sequence, fingerprint);
    } finally {
      sequence.drop();
    }
  }

  /** Puts the blocks of a snapshot into the cache. Returns the tokens they hold, or null when there is no room. */
  async restore(source: AsyncIterable<Uint8Array>, fingerprint: string): Promise<number | null> {
    return (await this.#kv.restore(source, fingerprint))?.length ?? null;
  }

  statistics(): Statistics {
    const running = this.#scheduler.runningCount;
    return this.#statistics.snapshot(running, this.#entries.size - running, this.#kv.stats(), this.#scheduler.stepCost);
  }

  async #run(): Promise<void> {
    // Requests made in the same turn of the event loop share the first step.
    await Promise.resolve();
    try {
      while (this.#entries.size > 0) {
        for (const entry of this.#prefixes.release()) this.#scheduler.add(entry);
        const begun = performance.now();
        const plan = this.#scheduler.schedule();
        if (plan.tokens > 0) await this.#runStep(plan, begun);
        else await this.#change();
      }
      this.#kv.checkIntegrity();
    } catch (error) {
      for (const entry of [...this.#entries.values()]) this.#end(entry, error);
    } finally {
      this.#active = false;
    }
  }

  /** Until a request comes, goes, or goes on. */
  async #change(): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
    this.#wake = undefined;
  }

  async #runStep(plan: StepPlan<Entry>, begun: number): Promise<void> {
    const entries = plan.chunks.map((chunk) => chunk.request);
    const abort = new AbortController();
    this.#running = { entries, abort };
    try {
      const step = this.#step(plan);
      const started = performance.now();
      const result = await this.#plan.run(step, { signal: abort.signal });
      const ended = performance.now();
      this.#scheduler.complete(plan, ended - started);
      await this.#deliver(plan, result);
      this.#statistics.count({
        number: plan.number,
        begun,
        started,
        ended,
        delivered: performance.now(),
        rows: plan.tokens,
        chunks: plan.chunks.map(({ request, start, end, sample }) => ({ request: request.id, start, end, sample })),
        preempted: plan.preempted.map(({ id }) => id),
        waiting: this.#scheduler.waitingCount,
        freeBlocks: this.#kv.freeBlocks,
      });
    } catch (error) {
      // Whatever was in the step failed with it; the rest goes on.
      for (const entry of entries) this.#end(entry, error);
    } finally {
      this.#running = undefined;
      for (const { sequence } of this.#leaving.splice(0)) sequence.drop();
    }
  }

  #step(plan: StepPlan<Entry>): Step {
    const tokens = new Int32Array(plan.tokens);
    const outputs: number[] = [];
    const samples: Step["samples"] = [];
    let row = 0;
    let logits = false;
    const sequences = plan.chunks.map(({ request: entry, start, end, sample }) => {
      for (let i = start; i < end; i++) tokens[row + i - start] = entry.tokens[i]!;
      if (entry.request.onLogits !== undefined) {
        logits = true;
        for (let i = start; i < end; i++) outputs.push(row + i - start);
      } else if (sample && entry.request.sampling !== undefined) {
        samples.push(sampleSpec(entry.request.sampling, outputs.length, entry.tokens));
        outputs.push(row + end - start - 1);
      }
      row += end - start;
      return { rowCount: end - start, contextLength: end, blockTable: entry.sequence.blockTable };
    });
    return { tokens, sequences, outputs: Int32Array.from(outputs), samples, logits };
  }

  async #deliver(plan: StepPlan<Entry>, result: StepResult): Promise<void> {
    let output = 0;
    let sample = 0;
    for (const chunk of plan.chunks) {
      const { request: entry, start, end } = chunk;
      const { request } = entry;
      const alive = this.#entries.has(request);
      if (alive) entry.sequence.advance(entry.tokens.slice(start, end));
      if (request.onLogits !== undefined) {
        const from = output * this.#vocabulary;
        output += end - start;
        if (!alive) continue;
        try {
          await request.onLogits(start, result.logits!.subarray(from, output * this.#vocabulary));
          if (end === entry.promptTokens) this.#end(entry);
        } catch (error) {
          this.#end(entry, error);
        }
      } else if (request.sampling === undefined) {
        if (alive && end === entry.promptTokens) this.#end(entry);
      } else if (chunk.sample) {
        output++;
        const chosen = result.samples[sample++]!;
        if (alive) this.#take(entry, chosen);
      }
    }
  }

  #take(entry: Entry, sample: Sample): void {
    const goesOn = entry.request.onSample?.(sample) ?? false;
    const proceed = (goesOn: boolean) => {
      if (!this.#entries.has(entry.request)) return;
      if (goesOn) {
        entry.tokens.push(sample.token);
        this.#scheduler.append(entry, 1);
      } else {
        this.#remove(entry);
      }
    };
    if (typeof goesOn === "boolean") {
      proceed(goesOn);
    } else {
      goesOn.then((value) => {
        proceed(value);
        this.#wake?.();
      });
    }
  }

  #end(entry: Entry, error?: unknown): void {
    if (!this.#entries.has(entry.request)) return;
    this.#remove(entry);
    entry.request.onEnd(error);
  }

  #remove(entry: Entry): void {
    this.#entries.delete(entry.request);
    this.#prefixes.forget(entry);
    this.#scheduler.abort(entry);
    // The blocks of a step that runs are written until it ends: nobody else may have them before.
    if (this.#isRunning(entry)) this.#leaving.push(entry);
    else entry.sequence.drop();
  }

  #isRunning(entry: Entry): boolean {
    return this.#running?.entries.includes(entry) ?? false;
  }
}
