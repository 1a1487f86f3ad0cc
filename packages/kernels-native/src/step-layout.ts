import { AdapterSlots } from "./adapter-slots.js";
import type { Handle } from "./addon.js";
import { checkInstance, checkInteger, checkNumber, checkObject, invalid } from "./check.js";
import type { PlanLimits } from "./encoder.js";
import type { SampleResult, SampleSpec, Step } from "./step.js";

/** A step as C++ takes it: flat arrays, laid out as native/step.cpp describes. */
interface FlatStep {
  tokens: Int32Array;
  sequences: Int32Array;
  outputs: Int32Array;
  samples: Float64Array;
  adapters: Float64Array;
  adapterSlots: Handle<"AdapterSlots"> | null;
  logits: boolean;
  following: number;
}

const none = new Float64Array(0);
/** Adapters in the mix of one sequence at most. */
const maxMix = 16;

/** Checks everything but the block ids (C++ knows how many there are) and flattens the step. */
export function flattenStep(step: Step, limits: PlanLimits): FlatStep {
  checkObject("step", step);
  const { tokens, outputs, samples = [], adapterSlots, logits = false, following = 0 } = step;
  checkArray("step.tokens", tokens);
  if (tokens.length === 0 || tokens.length > limits.maxRows) {
    throw invalid("step.tokens.length", tokens.length, `a step has from 1 to ${limits.maxRows} rows`);
  }
  checkTokens("step.tokens", tokens, limits.vocabulary);
  checkOutputs(outputs, tokens.length, limits.maxOutputs);
  if (!Array.isArray(samples)) throw invalid("step.samples", samples, "it must be an array");
  if (adapterSlots !== undefined) checkInstance("step.adapterSlots", adapterSlots, AdapterSlots);
  if (typeof logits !== "boolean") throw invalid("step.logits", logits, "it must be a boolean");
  checkInteger("step.following", following, 0);
  const flat = {
    tokens,
    sequences: flattenSequences(step, following, limits.blockSize),
    outputs,
    samples: samples.length === 0 ? none : flattenSamples(samples, outputs.length, limits.vocabulary),
    adapters: flattenAdapters(step),
    adapterSlots: adapterSlots?.handle ?? null,
    logits,
    following,
  };
  if (following > 0) checkFollowing(step, following);
  return flat;
}

/** Each sequence must have what a decode step of it needs. */
function checkFollowing({ sequences, outputs, samples = [], logits }: Step, following: number): void {
  const refuse = (argument: string, value: unknown, reason: string) => {
    throw invalid(argument, value, `${reason}, as ${following} steps may follow`);
  };
  const each = `each of the ${sequences.length} sequences must have one`;
  if (logits === true) refuse("step.logits", logits, "it must be absent or false");
  if (outputs.length !== sequences.length) refuse("step.outputs.length", outputs.length, each);
  if (samples.length !== sequences.length) refuse("step.samples.length", samples.length, each);
  let end = 0;
  for (const [i, { rowCount }] of sequences.entries()) {
    end += rowCount;
    if (outputs[i] !== end - 1)
      refuse(`step.outputs[${i}]`, outputs[i], `it must be ${end - 1}, the sequence's last row`);
    const { output, history } = samples[i]!;
    if (output !== i) refuse(`step.samples[${i}].output`, output, `it must be ${i}`);
    if (history !== undefined && history.length > 0) {
      refuse(`step.samples[${i}].history`, history, "it must be empty: it would lack the tokens of these steps");
    }
  }
}

function checkArray(argument: string, array: Int32Array): void {
  if (!(array instanceof Int32Array)) throw invalid(argument, array, "it must be an Int32Array");
}

function checkTokens(argument: string, tokens: Int32Array, vocabulary: number): void {
  for (let i = 0; i < tokens.length; i++) {
    const token = tokens[i]!;
    if (token < 0 || token >= vocabulary) {
      throw invalid(`${argument}[${i}]`, token, `tokens are from 0 to ${vocabulary - 1}`);
    }
  }
}

function checkOutputs(outputs: Int32Array, rows: number, maxOutputs: number): void {
  checkArray("step.outputs", outputs);
  if (outputs.length > maxOutputs) {
    throw invalid("step.outputs.length", outputs.length, `a step has at most ${maxOutputs} output rows`);
  }
  for (let i = 0; i < outputs.length; i++) {
    const row = outputs[i]!;
    if (row < 0 || row >= rows) throw invalid(`step.outputs[${i}]`, row, `the step has ${rows} rows`);
    if (i > 0 && row <= outputs[i - 1]!) throw invalid(`step.outputs[${i}]`, row, "output rows are ascending");
  }
}

function flattenSequences(step: Step, following: number, blockSize: number): Int32Array {
  const { sequences, tokens } = step;
  if (!Array.isArray(sequences)) throw invalid("step.sequences", sequences, "it must be an array");
  let rows = 0;
  let size = 0;
  for (let i = 0; i < sequences.length; i++) {
    const of = `step.sequences[${i}]`;
    const { rowCount, contextLength, blockTable } = checkObject(of, sequences[i]!);
    rows += checkInteger(`${of}.rowCount`, rowCount, 1);
    checkInteger(`${of}.contextLength`, contextLength, rowCount);
    checkArray(`${of}.blockTable`, blockTable);
    const blocks = Math.ceil((contextLength + following) / blockSize);
    if (blockTable.length < blocks) {
      throw invalid(
        `${of}.blockTable.length`,
        blockTable.length,
        `a context of ${contextLength + following} takes ${blocks} blocks of ${blockSize}`,
      );
    }
    size += 3 + blocks;
  }
  if (rows !== tokens.length) {
    throw invalid(
      "step.sequences",
      sequences,
      `their row counts add up to ${rows}, but there are ${tokens.length} tokens`,
    );
  }
  const flat = new Int32Array(size);
  let at = 0;
  for (const { rowCount, contextLength, blockTable } of sequences) {
    const blocks = Math.ceil((contextLength + following) / blockSize);
    flat[at] = rowCount;
    flat[at + 1] = contextLength;
    flat[at + 2] = blocks;
    flat.set(blockTable.length === blocks ? blockTable : blockTable.subarray(0, blocks), at + 3);
    at += 3 + blocks;
  }
  return flat;
}

function flattenAdapters({ sequences, adapterSlots }: Step): Float64Array {
  const flat: number[] = [];
  for (const [i, { adapters }] of sequences.entries()) {
    if (adapters === undefined) continue;
    const of = `step.sequences[${i}].adapters`;
    if (!Array.isArray(adapters)) throw invalid(of, adapters, "it must be an array");
    if (adapters.length > maxMix) throw invalid(of, adapters, `a mix has at most ${maxMix} adapters`);
    for (const [j, use] of adapters.entries()) {
      const { slot, weight } = checkObject(`${of}[${j}]`, use);
      if (adapterSlots === undefined) throw invalid(`${of}[${j}].slot`, slot, "the step has no adapterSlots");
      checkInteger(`${of}[${j}].slot`, slot, 0, adapterSlots.slots - 1);
      flat.push(i, slot, checkNumber(`${of}[${j}].weight`, weight, "finite", Number.isFinite));
    }
  }
  return flat.length === 0 ? none : Float64Array.from(flat);
}

const sampleHead = 14;

function flattenSamples(samples: SampleSpec[], outputs: number, vocabulary: number): Float64Array {
  let size = 0;
  for (let i = 0; i < samples.length; i++) {
    const { history, bias, stopTokens } = checkObject(`step.samples[${i}]`, samples[i]!);
    if (history !== undefined) checkArray(`step.samples[${i}].history`, history);
    if (bias !== undefined) checkInstance(`step.samples[${i}].bias`, bias as Map<number, number>, Map);
    if (stopTokens !== undefined && !Array.isArray(stopTokens)) {
      throw invalid(`step.samples[${i}].stopTokens`, stopTokens, "it must be an array");
    }
    size += sampleHead + (history?.length ?? 0) + 2 * (bias?.size ?? 0) + (stopTokens?.length ?? 0);
  }
  const flat = new Float64Array(size);
  let at = 0;
  for (let i = 0; i < samples.length; i++)
    at = writeSample(`step.samples[${i}]`, samples[i]!, outputs, vocabulary, flat, at);
  return flat;
}

function writeSample(
  of: string,
  sample: SampleSpec,
  outputs: number,
  vocabulary: number,
  flat: Float64Array,
  start: number,
): number {
  const { history, bias, stopTokens } = sample;
  const seed = checkSeed(`${of}.seed`, sample.seed ?? 0);
  let at = start;
  flat[at++] = checkInteger(`${of}.output`, sample.output, 0, outputs - 1);
  flat[at++] = checkNumber(`${of}.temperature`, sample.temperature ?? 0, "at least 0", (x) => x >= 0 && x < Infinity);
  flat[at++] = checkInteger(`${of}.topK`, sample.topK ?? 0, 0);
  flat[at++] = checkNumber(`${of}.topP`, sample.topP ?? 1, "from 0 to 1", (x) => x >= 0 && x <= 1);
  flat[at++] = checkNumber(`${of}.minP`, sample.minP ?? 0, "from 0 to 1", (x) => x >= 0 && x <= 1);
  flat[at++] = checkNumber(
    `${of}.repetitionPenalty`,
    sample.repetitionPenalty ?? 1,
    "over 0",
    (x) => x > 0 && x < Infinity,
  );
  flat[at++] = checkNumber(`${of}.presencePenalty`, sample.presencePenalty ?? 0, "finite", Number.isFinite);
  flat[at++] = checkNumber(`${of}.frequencyPenalty`, sample.frequencyPenalty ?? 0, "finite", Number.isFinite);
  flat[at++] = Number(seed & 0xffff_ffffn);
  flat[at++] = Number(seed >> 32n);
  flat[at++] = sample.logprobs === undefined ? -1 : checkInteger(`${of}.logprobs`, sample.logprobs, 0, vocabulary);
  flat[at++] = history?.length ?? 0;
  flat[at++] = bias?.size ?? 0;
  flat[at++] = stopTokens?.length ?? 0;
  if (history !== undefined) {
    checkTokens(`${of}.history`, history, vocabulary);
    flat.set(history, at);
    at += history.length;
  }
  if (bias !== undefined) {
    for (const [token, value] of bias) {
      flat[at++] = checkInteger(`${of}.bias, a token`, token, 0, vocabulary - 1);
      flat[at++] = checkNumber(`${of}.bias of ${token}`, value, "finite or -Infinity", (x) => x < Infinity);
    }
  }
  if (stopTokens !== undefined) {
    for (let i = 0; i < stopTokens.length; i++) {
      flat[at++] = checkInteger(`${of}.stopTokens[${i}]`, stopTokens[i]!, 0, vocabulary - 1);
    }
  }
  return at;
}

function checkSeed(argument: string, seed: bigint | number): bigint {
  if (typeof seed === "bigint" ? seed >= 0n && seed < 1n << 64n : Number.isSafeInteger(seed) && seed >= 0) {
    return BigInt(seed);
  }
  throw invalid(argument, seed, "it must be a bigint of 64 bits or a safe integer, and not negative");
}

/** Reads the samples of a step's result. */
export function readSamples(flat: Float64Array): SampleResult[] {
  const samples: SampleResult[] = [];
  let at = 0;
  while (at < flat.length) {
    const token = flat[at++]!;
    const logprob = flat[at++]!;
    const top = Array.from({ length: flat[at++]! }, () => ({ token: flat[at++]!, logprob: flat[at++]! }));
    samples.push({ token, logprob: Number.isNaN(logprob) ? null : logprob, top });
  }
  return samples;
}
