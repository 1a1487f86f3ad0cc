import type { LoraConfig } from "@niwaki/lora";
import type { ChatConversation } from "./chat-data.js";
import { TrainingError } from "./error.js";

export interface TrainerOptions {
  /** Conversations, or the path of a JSONL file with one `{"messages": […]}` on each line. */
  data: string | readonly ChatConversation[];
  /** What to adapt; rank 8, alpha 8, all seven projections of every layer if absent. */
  lora?: Partial<LoraConfig>;
  /** Steps of the optimizer; three times through the data if absent. */
  steps?: number;
  /** Examples in a step. 8 if absent. */
  batchSize?: number;
  /** Tokens that are computed at once: a step's examples are cut into batches of so many at most. 1,024 if absent. */
  maxRows?: number;
  /** Most tokens of an example, prompt and answer. 512 if absent, or what the model was made for, if that is less. */
  maxTokens?: number;
  /** At its highest. 2e-4 if absent. */
  learningRate?: number;
  /** Steps over which the learning rate rises from 0; a twentieth of all if absent. */
  warmupSteps?: number;
  /** Taken off A and B, times the learning rate. 0 if absent. */
  weightDecay?: number;
  /** Of AdamW. 0.9 if absent. */
  beta1?: number;
  /** Of AdamW. 0.999 if absent. */
  beta2?: number;
  /** Of AdamW. 1e-8 if absent. */
  epsilon?: number;
  /** Larger gradients are scaled to this norm; 0: none are. 1 if absent. */
  maxGradientNorm?: number;
  /** Weight of the prompt's tokens in the loss, those of answers having 1. 0 if absent: answers alone are learned. */
  promptWeight?: number;
  /** What prompts say of thinking, as in `generate`; the template's default if absent. */
  thinking?: boolean;
  /** Of the first A, and of the order of the examples; 0 if absent. */
  seed?: number;
  /** A checkpoint to go on from; of the same model, data and options. */
  resume?: string;
  /** CPU threads; one per core if absent. */
  threads?: number;
  /** Kernels for an instruction set; the best that the machine has, if absent. */
  tier?: string;
  /** Gives up loading. */
  signal?: AbortSignal;
}

/** The numbers that decide what is learned; a checkpoint keeps them. */
export interface TrainingSettings {
  steps: number;
  batchSize: number;
  maxRows: number;
  learningRate: number;
  warmupSteps: number;
  weightDecay: number;
  beta1: number;
  beta2: number;
  epsilon: number;
  maxGradientNorm: number;
  promptWeight: number;
  seed: number;
}

const largest = 2 ** 31 - 1;

/** @throws TrainingError `invalid-option` naming the option, its value and what is allowed. */
export function checkSettings(options: TrainerOptions, examples: number): TrainingSettings {
  const number = (name: keyof TrainingSettings, absent: number, allowed: string, test: (x: number) => boolean) =>
    checkOption(name, options[name] ?? absent, allowed, (x) => Number.isFinite(x) && test(x));
  const count = (name: keyof TrainingSettings, absent: number, least: number) =>
    number(name, absent, `a whole number from ${least} to ${largest}`, (x) => isCount(x, least));
  const share = (name: keyof TrainingSettings, absent: number) =>
    number(name, absent, "a number from 0 to under 1", (x) => x >= 0 && x < 1);
  const notNegative = (name: keyof TrainingSettings, absent: number) =>
    number(name, absent, "a number from 0 up", (x) => x >= 0);
  const batchSize = count("batchSize", 8, 1);
  const steps = count("steps", Math.ceil((3 * examples) / batchSize), 1);
  const warmupSteps = number("warmupSteps", Math.floor(steps / 20), `a whole number from 0 to under ${steps}`, (x) =>
    isCount(x, 0, steps - 1),
  );
  return {
    steps,
    batchSize,
    maxRows: count("maxRows", 1024, 1),
    learningRate: notNegative("learningRate", 2e-4),
    warmupSteps,
    weightDecay: notNegative("weightDecay", 0),
    beta1: share("beta1", 0.9),
    beta2: share("beta2", 0.999),
    epsilon: number("epsilon", 1e-8, "a positive number", (x) => x > 0),
    maxGradientNorm: notNegative("maxGradientNorm", 1),
    promptWeight: notNegative("promptWeight", 0),
    seed: number("seed", 0, `a whole number up to ${largest}`, (x) => Number.isInteger(x) && Math.abs(x) <= largest),
  };
}

/** @throws TrainingError `invalid-option` */
export function checkMaxTokens(value: number | undefined, contextLength: number): number {
  const absent = Math.min(512, contextLength);
  const allowed = `a whole number from 2 to ${contextLength}, which the model was made for`;
  return checkOption("maxTokens", value ?? absent, allowed, (x) => isCount(x, 2, contextLength));
}

function checkOption(option: string, value: number, allowed: string, test: (x: number) => boolean): number {
  if (typeof value === "number" && test(value)) return value;
  throw new TrainingError("invalid-option", `The option ${option} must be ${allowed}, not ${String(value)}.`, {
    option,
    value,
  });
}

function isCount(x: number, least: number, most = largest): boolean {
  return Number.isInteger(x) && x >= least && x <= most;
}
