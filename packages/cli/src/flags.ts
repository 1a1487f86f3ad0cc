import { demoModelPath } from "@niwaki/demo-model";
import type { GenerateOptions, LoadOptions } from "@niwaki/qwen3-model";
import { type Command, InvalidArgumentError, Option } from "commander";

type KvType = NonNullable<LoadOptions["kvType"]>;
type Backend = NonNullable<LoadOptions["backend"]>;

export interface ModelFlags {
  model: string;
  backend?: Backend;
  gpu?: number;
  threads?: number;
  ctxSize?: number;
  kv?: KvType;
  tier?: string;
  lora?: LoraFlag[];
}

/** An adapter that answers are given with. */
export interface LoraFlag {
  path: string;
  scale: number;
}

export interface AnswerFlags {
  predict?: number;
  temp?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  repeatPenalty?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  repeatLastN?: number;
  seed?: number;
  stop?: string[];
  system?: string;
  think: boolean;
}

export function addModelFlags(command: Command): Command {
  return addRunFlags(
    command.option("-m, --model <file>", "a Qwen3 GGUF; the built-in demo model if absent", demoModelPath),
  ).option("-c, --ctx-size <tokens>", "tokens of context", wholeNumber);
}

/** Flags of every command that runs a model. */
export function addRunFlags(command: Command): Command {
  return command
    .addOption(
      new Option(
        "--backend <name>",
        "where the model runs: cpu; cuda, an NVIDIA GPU; auto, a GPU if one is usable (default: cpu, or NIWAKI_BACKEND)",
      ).choices(["cpu", "cuda", "auto"] satisfies Backend[]),
    )
    .option("--gpu <n>", "the number of a GPU; the first usable one if absent", wholeNumber)
    .option("-t, --threads <n>", "CPU threads; one per core if absent", wholeNumber)
    .addOption(
      new Option("--kv <type>", "number type of the KV cache").choices(["f16", "f32", "q8"] satisfies KvType[]),
    )
    .addOption(loraOption())
    .option(
      "--tier <name>",
      "kernels for an instruction set: avx512vbmi, avx512, avx2, neon, portable; the best if absent",
    );
}

export function loraOption(): Option {
  return new Option(
    "--lora <path[:scale]>",
    "a LoRA adapter, a folder of PEFT's or a GGUF; given several times, a mix",
  ).argParser((text: string, before: LoraFlag[] | undefined) => [...(before ?? []), loraFlag(text)]);
}

export function addAnswerFlags(command: Command): Command {
  return command
    .option("-n, --predict <tokens>", "tokens to generate at most", wholeNumber)
    .option("--temp <x>", "temperature; 0 chooses the most likely token (default: 0)", number)
    .option("--top-k <n>", "keep the n most likely tokens", wholeNumber)
    .option("--top-p <x>", "keep the most likely tokens that reach this probability", number)
    .option("--min-p <x>", "keep tokens at least this share as likely as the best", number)
    .option("--repeat-penalty <x>", "penalty for repeated tokens; 1 is off", number)
    .option("--presence-penalty <x>", "subtracted from tokens that occurred", number)
    .option("--frequency-penalty <x>", "subtracted from tokens for each occurrence", number)
    .option("--repeat-last-n <n>", "how many tokens the penalties look at (default: 64)", wholeNumber)
    .option("--seed <n>", "the same seed gives the same text", wholeNumber)
    .option("--stop <text...>", "ends the answer where this text would come")
    .option("-s, --system <text>", "the system message")
    .option("--no-think", "answer without thinking first");
}

export function loadOptions(flags: Omit<ModelFlags, "model">): LoadOptions {
  return given({
    backend: flags.backend,
    gpu: flags.gpu,
    threads: flags.threads,
    contextLength: flags.ctxSize,
    kvType: flags.kv,
    tier: flags.tier,
    adapters: flags.lora && { slots: flags.lora.length, maxRank: 64 },
  });
}

export function generateOptions(flags: AnswerFlags): GenerateOptions {
  return given({
    maxTokens: flags.predict,
    temperature: flags.temp,
    topK: flags.topK,
    topP: flags.topP,
    minP: flags.minP,
    repetitionPenalty: flags.repeatPenalty,
    presencePenalty: flags.presencePenalty,
    frequencyPenalty: flags.frequencyPenalty,
    penaltyWindow: flags.repeatLastN,
    seed: flags.seed,
    stop: flags.stop,
    thinking: flags.think,
  });
}

/** A path that ends in a colon and a number has a scale. */
export function loraFlag(text: string): LoraFlag {
  const [, path, scale] = /^(.+):([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)$/i.exec(text) ?? [];
  return path === undefined ? { path: text, scale: 1 } : { path, scale: number(scale!) };
}

/** The same object without what is undefined. */
export function given<T extends object>(values: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as {
    [K in keyof T]?: Exclude<T[K], undefined>;
  };
}

export function wholeNumber(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) throw new InvalidArgumentError("It must be a whole number.");
  return value;
}

export function number(text: string): number {
  const value = Number(text);
  if (text.trim() === "" || !Number.isFinite(value)) throw new InvalidArgumentError("It must be a number.");
  return value;
}
