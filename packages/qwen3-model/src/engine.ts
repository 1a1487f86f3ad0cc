import type { Plan, StepResult } from "@niwaki/kernels-native";
import { type KvStorage, PagedKv } from "@niwaki/paged-kv";
import { type Policy, Scheduler, type StepPlan } from "@niwaki/prefill-scheduler";
import { type EngineRequest, Entry, prefixKey, type Sample } from "./engine-request.js";
import { EngineStatistics, type Statistics, type StepRecord } from "./engine-statistics.js";
import { type EngineStep, engineStep, giveLogits, withoutAbsent } from "./engine-step.js";
import { SharedPrefixes } from "./shared-prefixes.js";

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
  /** Milliseconds for which tokens of decode steps may be kept, to come together; 0: the engine is between all steps. */
  readonly burstMilliseconds: number;
  /** Told of every step when it has ended. */
  readonly onStep: ((step: StepRecord) => void) | undefined;
}

/** Steps that follow one another without the engine, at most. */
const MOST_FOLLOWING = 15;

/** A plan that may be run next. Times are milliseconds of `performance.now()`. */
interface Prepared {
  readonly plan: StepPlan<Entry>;
  readonly begun: number;
  readonly planned: number;
}

interface Running extends EngineStep {
  readonly prepared: Prepared;
  /** What is left of the plan. */
  readonly plan: StepPlan<Entry>;
  readonly result: Promise<StepResult>;
  /** It and those that followed it, as far as their tokens came, and when the last of these ended. */
  steps: number;
  ended: number;
}

/** Steps that ended, and are still to be reported. */
interface Ended {
  readonly running: Running;
  /** Those of the burst before them. */
  readonly before: number;
  readonly steps: number;
  readonly started: number;
  readonly ended: number;
  readonly delivered: number;
}

/**
 * Runs every request of a model: asks the scheduler for the next step, runs it, hands out its tokens, again and again
 * while there is something to compute. The next step is planned while one runs, with a row for each token that is to come:
 *
 * ```text
 *   kernels     | step 1          |   | step 2          |   | step 3
 *   engine  plan 1  plan 2       tokens 1  plan 3      tokens 2  plan 4
 * ```
 *
 * so that between two steps there is only what depends on the tokens: who goes on, and with which. Where nobody waits, steps
 * follow one another in the kernels, a burst, and do not wait for the engine. Their tokens come while the next ones run, those
 * of short steps together: a token then costs this thread, and the kernels that it takes a core from, a part of what it does
 * one by one.
 */
export class Engine {
  readonly #plan: Plan;
  readonly #vocabulary: number;
  readonly #kv: PagedKv;
  readonly #scheduler: Scheduler<Entry>;
  readonly #entries = new Map<EngineRequest, Entry>();
  readonly #prefixes: SharedPrefixes<Entry>;
  readonly #statistics: EngineStatistics;
  /** Blocks that the prompts' rows of a step take at most. */
  readonly #stepBlocks: number;
  readonly #burstMilliseconds: number;
  #lastId = 0;
  #running: Running | undefined;
  #prepared: Prepared | undefined;
  /** Stops the running step; a new one when it was used. */
  #abort = new AbortController();
  /** Ends the running burst with the step that runs; a new one when it was used. */
  #enough = new AbortController();
  /** Entries that ended while their step ran. */
  readonly #leaving: Entry[] = [];
  #active = false;
  #closed: { reason: unknown } | undefined;
  #loop: Promise<void> = Promise.resolve();
  /** Ends the loop's wait while all requests wait for their consumers. */
  #wake: (() => void) | undefined;

  constructor(plan: Plan, options: EngineOptions) {
    const { blockCount, blockSize, policy, targetMilliseconds } = options;
    this.#plan = plan;
    this.#vocabulary = options.vocabulary;
    this.#stepBlocks = Math.ceil(options.maxRows / blockSize);
    this.#burstMilliseconds = Math.min(options.burstMilliseconds, targetMilliseconds ?? Number.POSITIVE_INFINITY);
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

  /** Takes a request; its prompt has at least one token and fits the context. After `close` it ends with that reason. */
  submit(request: EngineRequest): void {
    if (this.#closed !== undefined) {
      request.onEnd(this.#closed.reason);
      return;
    }
    const sequence = this.#kv.create({ extraKeys: prefixKey(request.cacheSalt, request.adapters) });
    const entry = new Entry(++this.#lastId, request, sequence);
    this.#entries.set(request, entry);
    // What another request is computing right now is worth waiting for.
    if (request.onLogits !== undefined || !this.#prefixes.hold(entry)) this.#schedule(entry);
    this.endBurst();
    if (this.#active) {
      this.#wake?.();
    } else {
      this.#active = true;
      this.#loop = this.#run();
    }
  }

  /** Ends a burst with the step that runs: somebody came, went, or has other work for the device. */
  endBurst(): void {
    if (!this.#running?.step.following) return;
    this.#enough.abort();
    this.#enough = new AbortController();
  }

  /** Forgets a request at any moment. A step that computes nothing else is cancelled, also halfway through a chunk. */
  cancel(request: EngineRequest): void {
    const entry = this.#entries.get(request);
    if (entry === undefined) return;
    this.#remove(entry);
    this.#cutShort();
    this.#wake?.();
  }

  /** Somebody in the running step goes on no more: it is cancelled where that is everybody, and nothing follows it. */
  #cutShort(): void {
    if (this.#running?.plan.chunks.every((chunk) => chunk.request.gone)) {
      this.#abort.abort();
      this.#abort = new AbortController();
    }
    this.endBurst();
  }

  /** Cancels everything and waits for the step that runs. */
  async close(reason: unknown): Promise<void> {
    this.#closed = { reason };
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
    const sequence = this.#kv.create({ extraKeys: prefixKey(cacheSalt) });
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

  blockMap(): Uint8Array {
    return this.#kv.blockMap();
  }

  async #run(): Promise<void> {
    // Requests made in the same turn of the event loop share the first step.
    await Promise.resolve();
    let ended: Ended | undefined;
    try {
      while (this.#entries.size > 0 || ended !== undefined) {
        const running = this.#start();
        if (ended !== undefined) {
          this.#report(ended);
          this.#scheduler.recycle(ended.running.prepared.plan);
        }
        ended = undefined;
        if (running === undefined) {
          if (this.#entries.size > 0) await this.#change();
          continue;
        }
        this.#prepare(running);
        let result: StepResult;
        try {
          result = await running.result;
        } catch (error) {
          this.#fail(running, error);
          continue;
        }
        // From here to the start of the next step nothing is awaited: what consumers do comes after it.
        this.#stop();
        ended = this.#deliver(running, result.samples, result.started);
        if (result.logits !== null) await this.#giveLogits(running, result.logits);
      }
      this.#kv.checkIntegrity();
    } catch (error) {
      await this.#running?.result.catch(() => {});
      this.#stop();
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

  /** Starts what is left of the plan that was prepared, or of a new one; undefined when there is nothing to compute. */
  #start(): Running | undefined {
    for (const entry of this.#prefixes.release()) this.#schedule(entry);
    while (this.#entries.size > 0) {
      const prepared = this.#prepared ?? this.#planStep();
      const isNew = this.#prepared === undefined;
      this.#prepared = undefined;
      const plan = withoutAbsent(prepared.plan);
      if (plan.tokens > 0) {
        const step = engineStep(plan, this.#following(plan));
        const result = this.#plan.run(step.step, {
          signal: this.#abort.signal,
          enough: this.#enough.signal,
          onSamples: (samples, started) => this.#deliverEarly(running, samples, started),
          samplesWithin: this.#burstMilliseconds,
        });
        const running: Running = { ...step, prepared, plan, result, steps: 0, ended: 0 };
        this.#running = running;
        return running;
      }
      this.#scheduler.recycle(prepared.plan);
      if (isNew) return undefined;
    }
    return undefined;
  }

  /** Steps that may follow this one at once. */
  #following(plan: StepPlan<Entry>): number {
    // Somebody waits for a prefix, or for a consumer.
    if (this.#burstMilliseconds === 0 || this.#entries.size > plan.chunks.length) return 0;
    let most = MOST_FOLLOWING;
    for (const { request } of plan.chunks) most = Math.min(most, request.mayFollow);
    return this.#scheduler.following(plan, most);
  }

  #planStep(): Prepared {
    const begun = performance.now();
    const plan = this.#scheduler.schedule();
    return { plan, begun, planned: performance.now() };
  }

  /** While a step runs: plans the next one, as if every request in it went on. */
  #prepare({ plan, step }: Running): void {
    this.#scheduler.complete(plan);
    // How many tokens there will be is not known.
    if (step.following) return;
    for (const { request: entry, sample } of plan.chunks) {
      if (!sample || !entry.samples || !entry.mayGoOn) continue;
      entry.expecting = true;
      this.#scheduler.append(entry, 1);
    }
    // Logits are waited for. And nobody may lose blocks that are being written, so there must be enough for everybody.
    if (step.logits || this.#kv.freeBlocks < this.#scheduler.runningCount + this.#stepBlocks) return;
    this.#prepared = this.#planStep();
  }

  /** Tokens of a burst that goes on, unless somebody does not. */
  #deliverEarly(running: Running, samples: readonly Sample[], started: number): void {
    this.#report(this.#deliver(running, samples, started));
    if (running.sampled.some(({ gone, deciding }) => gone || deciding)) this.#cutShort();
  }

  /** The tokens of a step, or of several of a burst: who goes on, and who ends. */
  #deliver(running: Running, samples: readonly Sample[], begun: number): Ended {
    const ended = performance.now();
    const { plan, sampled, steps: before } = running;
    const started = before === 0 ? begun : running.ended;
    for (const { request: entry, start, end } of before === 0 ? plan.chunks : []) {
      if (entry.gone) continue;
      entry.sequence.advance(end - start === 1 ? [entry.tokens[start]!] : entry.tokens.slice(start, end));
      const { sampling, onLogits } = entry.request;
      if (sampling === undefined && onLogits === undefined && end === entry.promptTokens) this.#end(entry);
    }
    const steps = sampled.length === 0 ? 1 : samples.length / sampled.length;
    for (const [i, sample] of samples.entries()) {
      const of = i % sampled.length;
      const entry = sampled[of]!;
      if (entry.gone) continue;
      const step = before + Math.floor(i / sampled.length);
      if (step > 0) {
        // It computed the token chosen before, and chose the next. Who waited for a consumer computes it again.
        if (entry.deciding || entry.tokens.length !== plan.chunks[of]!.end + step) continue;
        this.#scheduler.advance(entry, 1);
        entry.sequence.advance([entry.tokens.at(-1)!]);
      }
      this.#take(entry, sample);
    }
    running.steps += steps;
    running.ended = ended;
    return { running, before, steps, started, ended, delivered: performance.now() };
  }

  async #giveLogits(running: Running, logits: Float32Array): Promise<void> {
    const { plan } = running;
    await giveLogits(plan, running, logits, this.#vocabulary, (entry, error) => this.#end(entry, error));
    for (const { request: entry, end } of plan.chunks) {
      if (entry.request.onLogits !== undefined && end === entry.promptTokens) this.#end(entry);
    }
  }

  #take(entry: Entry, sample: Sample): void {
    entry.chosen++;
    const goesOn = entry.request.onSample?.(sample) ?? false;
    if (typeof goesOn === "boolean") {
      this.#proceed(entry, sample, goesOn);
      return;
    }
    entry.deciding = true;
    if (entry.expecting) this.#scheduler.retract(entry, 1);
    entry.expecting = false;
    goesOn.then((value) => {
      entry.deciding = false;
      this.#proceed(entry, sample, value);
      this.#discard();
      this.#wake?.();
    });
  }

  #proceed(entry: Entry, sample: Sample, goesOn: boolean): void {
    if (entry.gone) return;
    if (!goesOn) {
      this.#remove(entry);
      return;
    }
    entry.tokens.push(sample.token);
    if (!entry.expecting) this.#scheduler.append(entry, 1);
    entry.expecting = false;
  }

  /** While the next step runs: what is known of this one. */
  #report({ running, before, steps, started, ended, delivered }: Ended): void {
    const { plan, prepared } = running;
    this.#scheduler.observe(plan, (ended - started) / steps);
    this.#statistics.count({
      number: plan.number,
      begun: before === 0 ? prepared.begun : started,
      planned: before === 0 ? prepared.planned : started,
      started,
      ended,
      delivered,
      steps,
      rows: plan.tokens,
      chunks: plan.chunks.map(({ request, start, end, sample }) => ({
        request: request.id,
        start: start + before,
        end: end + before,
        sample,
      })),
      preempted: plan.preempted.map(({ id }) => id),
      waiting: this.#scheduler.waitingCount,
      freeBlocks: this.#kv.freeBlocks,
    });
  }

  /** Whatever was in the step failed with it; the rest goes on. */
  #fail({ plan, prepared }: Running, error: unknown): void {
    this.#stop();
    for (const { request: entry } of plan.chunks) this.#end(entry, error);
    this.#scheduler.recycle(prepared.plan);
  }

  /** No step runs any more: what it alone held is free. */
  #stop(): void {
    this.#running = undefined;
    for (const { sequence } of this.#leaving.splice(0)) sequence.drop();
  }

  /** The request may run from the next step on. */
  #schedule(entry: Entry): void {
    this.#scheduler.add(entry);
    this.#discard();
  }

  /** There is more to run than the prepared plan knows. */
  #discard(): void {
    if (this.#prepared !== undefined) this.#scheduler.recycle(this.#prepared.plan);
    this.#prepared = undefined;
  }

  #end(entry: Entry, error?: unknown): void {
    if (entry.gone) return;
    this.#remove(entry);
    entry.request.onEnd(error);
  }

  #remove(entry: Entry): void {
    entry.gone = true;
    this.#entries.delete(entry.request);
    this.#prefixes.forget(entry);
    this.#scheduler.abort(entry);
    // The blocks of a step that runs are written until it ends: nobody else may have them before.
    if (this.#isRunning(entry)) this.#leaving.push(entry);
    else entry.sequence.drop();
  }

  #isRunning(entry: Entry): boolean {
    return this.#running?.plan.chunks.some(({ request }) => request === entry) ?? false;
  }
}
