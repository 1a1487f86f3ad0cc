import type { Plan, Step, StepResult } from "@niwaki/kernels-native";
import { PagedKv, type Sequence } from "@niwaki/paged-kv";
import { Scheduler, type StepPlan } from "@niwaki/prefill-scheduler";
import type { checkSampling } from "./options.js";
import { sampleSpec } from "./options.js";

/** A token that was chosen, with log-probabilities if they were asked for. */
export type Sample = StepResult["samples"][number];

/** One request as the engine sees it: tokens in, tokens out. The callbacks run between steps. */
export interface EngineRequest {
  readonly promptIds: readonly number[];
  /** How to choose tokens; absent for a request that only wants the logits of its prompt. */
  readonly sampling?: ReturnType<typeof checkSampling>;
  /** A token was chosen. Returns whether the request goes on; after false the engine forgets it. */
  onSample?(sample: Sample): boolean;
  /** Logits of the prompt's rows from `start` on: [rows, vocabulary]. A request with it ends after its prompt. */
  onLogits?(start: number, logits: Float32Array): void | Promise<void>;
  /** The request ended otherwise: all logits given, or an error of the step. */
  onEnd(error?: unknown): void;
}

interface Entry {
  readonly request: EngineRequest;
  readonly promptTokens: number;
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
  #running: { entries: readonly Entry[]; abort: AbortController } | undefined;
  #active = false;
  #loop: Promise<void> = Promise.resolve();

  constructor(plan: Plan, options: EngineOptions) {
    this.#plan = plan;
    this.#vocabulary = options.vocabulary;
    this.#kv = new PagedKv({ blockCount: options.blockCount, blockSize: options.blockSize });
    this.#scheduler = new Scheduler<Entry>(
      {
        maxTokensPerStep: options.maxRows,
        maxSequencesPerStep: options.maxSequences,
        chunkSize: options.chunkSize,
        maxTokensPerRequest: options.contextLength,
      },
      {
        reserve: (entry, tokens) => entry.sequence.ensureCapacity(tokens),
        release: (entry) => entry.sequence.truncate(0),
      },
    );
  }

  /** Takes a request; its prompt has at least one token and fits the context. */
  submit(request: EngineRequest): void {
    const entry: Entry = {
      request,
      promptTokens: request.promptIds.length,
      tokens: [...request.promptIds],
      sequence: this.#kv.create(),
    };
    this.#scheduler.add(entry);
    this.#entries.set(request, entry);
    if (!this.#active) {
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
  }

  /** Cancels everything and waits for the step that runs. */
  async close(reason: unknown): Promise<void> {
    const requests = [...this.#entries.keys()];
    for (const request of requests) this.cancel(request);
    for (const request of requests) request.onEnd(reason);
    await this.#loop;
  }

  async #run(): Promise<void> {
    // Requests made in the same turn of the event loop share the first step.
    await Promise.resolve();
    try {
      while (this.#entries.size > 0) await this.#runStep(this.#scheduler.schedule());
      this.#kv.checkIntegrity();
    } catch (error) {
      for (const entry of [...this.#entries.values()]) this.#end(entry, error);
    } finally {
      this.#active = false;
    }
  }

  async #runStep(plan: StepPlan<Entry>): Promise<void> {
    const entries = plan.chunks.map((chunk) => chunk.request);
    const abort = new AbortController();
    this.#running = { entries, abort };
    try {
      const result = await this.#plan.run(this.#step(plan), { signal: abort.signal });
      this.#scheduler.complete(plan);
      await this.#deliver(plan, result);
    } catch (error) {
      // Whatever was in the step failed with it; the rest goes on.
      for (const entry of entries) this.#end(entry, error);
    } finally {
      this.#running = undefined;
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
      if (request.onLogits !== undefined) {
        const from = output * this.#vocabulary;
        output += end - start;
        if (!this.#entries.has(request)) continue;
        entry.sequence.advance(entry.tokens.slice(start, end));
        try {
          await request.onLogits(start, result.logits!.subarray(from, output * this.#vocabulary));
          if (end === entry.promptTokens) this.#end(entry);
        } catch (error) {
          this.#end(entry, error);
        }
      } else {
        const chosen = chunk.sample ? result.samples[sample++] : undefined;
        if (chunk.sample) output++;
        if (!this.#entries.has(request)) continue;
        entry.sequence.advance(entry.tokens.slice(start, end));
        if (chosen !== undefined) this.#take(entry, chosen);
      }
    }
  }

  #take(entry: Entry, sample: Sample): void {
    if (entry.request.onSample?.(sample)) {
      entry.tokens.push(sample.token);
      this.#scheduler.append(entry, 1);
    } else if (this.#entries.has(entry.request)) {
      this.#remove(entry);
    }
  }

  #end(entry: Entry, error?: unknown): void {
    if (!this.#entries.has(entry.request)) return;
    this.#remove(entry);
    entry.request.onEnd(error);
  }

  #remove(entry: Entry): void {
    this.#entries.delete(entry.request);
    this.#scheduler.abort(entry);
    entry.sequence.drop();
  }
}
