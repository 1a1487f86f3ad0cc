import type { Step } from "@niwaki/kernels-native";
import type { ScheduledChunk, StepPlan } from "@niwaki/prefill-scheduler";
import type { Entry } from "./engine-request.js";

/** Chunks of a plan as the kernels take them. */
export interface EngineStep {
  readonly step: Step;
  /** Who gets the samples, in their order. */
  readonly sampled: readonly Entry[];
}

/** Whether a chunk can run: its request is there and all its tokens are known. */
function canRun({ request, end }: ScheduledChunk<Entry>): boolean {
  return !request.gone && end <= request.tokens.length;
}

/** The plan without the rows of those that ended, or wait for their consumers, since it was made. */
export function withoutAbsent(plan: StepPlan<Entry>): StepPlan<Entry> {
  if (plan.chunks.every(canRun)) return plan;
  const chunks = plan.chunks.filter(canRun);
  const tokens = chunks.reduce((sum, { start, end }) => sum + end - start, 0);
  return { number: plan.number, chunks, tokens, preempted: plan.preempted };
}

/**
 * Rows, block tables and outputs of a plan: the last row of a request whose next token is chosen, every row for logits.
 * @param following decode steps that may follow at once
 */
export function engineStep(plan: StepPlan<Entry>, following: number): EngineStep {
  const tokens = new Int32Array(plan.tokens);
  const sequences: Step["sequences"] = [];
  const samples: NonNullable<Step["samples"]> = [];
  const outputs: number[] = [];
  const sampled: Entry[] = [];
  let logits = false;
  let adapterSlots: Step["adapterSlots"];
  let row = 0;
  for (const { request: entry, start, end, sample } of plan.chunks) {
    const first = row;
    for (let i = start; i < end; i++) tokens[row++] = entry.tokens[i]!;
    if (entry.request.onLogits !== undefined) {
      logits = true;
      for (let i = first; i < row; i++) outputs.push(i);
    } else if (sample && entry.samples) {
      samples.push(entry.sampleFrom(outputs.length));
      sampled.push(entry);
      outputs.push(row - 1);
    }
    const { adapters } = entry.request;
    const sequence = { rowCount: end - start, contextLength: end, blockTable: entry.sequence.blockTable };
    sequences.push(adapters === undefined ? sequence : { ...sequence, adapters: adapters.uses });
    adapterSlots ??= adapters?.slots;
  }
  const step = { tokens, sequences, outputs: Int32Array.from(outputs), samples, logits, following };
  return { step: adapterSlots === undefined ? step : { ...step, adapterSlots }, sampled };
}

/** Gives the rows of logits to the requests that asked for them; `failed` hears of those that throw. */
export async function giveLogits(
  plan: StepPlan<Entry>,
  { sampled }: EngineStep,
  logits: Float32Array,
  vocabulary: number,
  failed: (entry: Entry, error: unknown) => void,
): Promise<void> {
  const others = new Set(sampled);
  let output = 0;
  for (const { request: entry, start, end } of plan.chunks) {
    if (others.has(entry)) output++;
    const { request } = entry;
    if (request.onLogits === undefined) continue;
    const from = output;
    output += end - start;
    if (entry.gone) continue;
    try {
      await request.onLogits(start, logits.subarray(from * vocabulary, output * vocabulary));
    } catch (error) {
      failed(entry, error);
    }
  }
}
