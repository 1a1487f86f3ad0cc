import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

/** A fixture model with the logits a float64 forward gives for it. */
export interface Golden {
  /** Absolute path of the GGUF file. */
  model: string;
  /** File name without the extension. */
  name: string;
  tokens: number[];
  /** Logits of every position, [tokens, vocabulary], rounded once from float64. */
  logits: Float32Array;
  /** [tokens, vocabulary]. */
  shape: [number, number];
  /** Mean KL(reference || llama.cpp) over the positions in nats, where it was measured. */
  llamaCppMeanKl: number | null;
  /** LoRA adapters of this model, each with the logits it gives. */
  adapters: GoldenAdapter[];
  /** Two of them at once, each with its weight. */
  mix: { of: [path: string, weight: number][]; logits: Float32Array } | null;
}

/** An adapter of a fixture model with the logits of the adapted model, of the model's tokens and shape. */
export interface GoldenAdapter {
  /** Absolute path of the PEFT folder. */
  path: string;
  /** The folder's name. */
  name: string;
  /** What the adapter's contribution is multiplied with. */
  scale: number;
  logits: Float32Array;
}

/** A prompt for the demo model with the greedy answer under one of its adapters. */
export interface DemoAdapterAnswer {
  /** null: the model alone. */
  adapter: "pirate" | "robot" | null;
  messages: { role: "user"; content: string }[];
  enableThinking: boolean;
  /** Without the end of turn. */
  outputIds: number[];
  answer: string;
  /** See {@link DemoAnswer}. */
  minMargin: number;
}

/** A prompt for the demo model with its greedy answer. */
export interface DemoAnswer {
  skill: string;
  /** The rendered prompt, control tokens and all. */
  prompt: string;
  /** What the prompt was rendered from; null where it also holds tools. */
  messages: { role: "system" | "user" | "assistant"; content: string }[] | null;
  enableThinking: boolean;
  promptIds: number[];
  /** Without the end of turn. */
  outputIds: number[];
  answer: string;
  /** Whether the answer is correct; greedy decoding must give it either way. */
  right: boolean;
  /** Smallest gap between the two best logits on the way: under about 0.05 another rounding may choose otherwise. */
  minMargin: number;
}

interface IndexEntry {
  model: string;
  tokens: number[];
  logits: string;
  shape: [number, number];
  adapters: { path: string; scale: number; logits: string }[];
  mix?: { of: [path: string, weight: number][]; logits: string };
  llamaCppKl?: { mean: number; max: number };
}

/** Absolute path of a file in the fixtures folder. */
export function fixturePath(name: string): string {
  return fileURLToPath(new URL(`../fixtures/${name}`, import.meta.url));
}

/** The six fixture models of `fixtures/index.json`. */
export function goldens(): Golden[] {
  return readJson<IndexEntry[]>("index.json").map((entry) => ({
    model: fixturePath(entry.model),
    name: entry.model.replace(/\.gguf$/, ""),
    tokens: entry.tokens,
    logits: readFloats(entry.logits),
    shape: entry.shape,
    llamaCppMeanKl: entry.llamaCppKl?.mean ?? null,
    adapters: entry.adapters.map(({ path, scale, logits }) => ({
      path: fixturePath(path),
      name: path,
      scale,
      logits: readFloats(logits),
    })),
    mix:
      entry.mix === undefined
        ? null
        : {
            of: entry.mix.of.map(([path, weight]) => [fixturePath(path), weight]),
            logits: readFloats(entry.mix.logits),
          },
  }));
}

/** The 66 prompts and answers of `fixtures/demo-answers.json`. */
export function demoAnswers(): DemoAnswer[] {
  return readJson<DemoAnswer[]>("demo-answers.json");
}

/** Eight prompts without an adapter, with `pirate` and with `robot`: `fixtures/demo-adapter-answers.json`. */
export function demoAdapterAnswers(): DemoAdapterAnswer[] {
  return readJson<DemoAdapterAnswer[]>("demo-adapter-answers.json");
}

function readJson<T>(name: string): T {
  return JSON.parse(readFileSync(fixturePath(name), "utf8")) as T;
}

function readFloats(name: string): Float32Array {
  // A copy, because a Buffer may start anywhere in its memory and a Float32Array may not.
  return new Float32Array(Uint8Array.from(readFileSync(fixturePath(name))).buffer);
}
