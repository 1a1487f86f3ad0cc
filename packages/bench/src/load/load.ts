import { readFile, stat } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { shapes } from "@niwaki/testing";
import { type EngineName, withEngines } from "../engines/engine.js";
import { machine } from "../machine.js";
import { cachedRandomModel, shapeName } from "../models.js";
import { median } from "../statistics.js";
import { printTable } from "../table.js";

const PROMPT_TOKENS = 16;
const ANSWER_TOKENS = 48;
const CONTEXT_TOKENS = 512;

/**
 * Loads a random model of the 8B shape (1.15 GB of Q1_0) and answers, in a process of its own, Niwaki and node-llama-cpp
 * in turn. The bound of loading is reading the file once.
 */
export async function loadBenchmark(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      shape: { type: "string", default: "8b" },
      rounds: { type: "string", default: "3" },
      threads: { type: "string", default: String(availableParallelism()) },
      json: { type: "boolean", default: false },
    },
  });
  const path = await cachedRandomModel(values.shape, shapes[shapeName(values.shape)], 1);
  const threads = Number(values.threads);
  const fileBytes = (await stat(path)).size;
  const ours: LoadReport[] = [];
  const theirs: LoadReport[] = [];
  const reads: number[] = [];
  for (let round = 0; round < Number(values.rounds); round++) {
    reads.push(await readSeconds(path));
    ours.push(await loadAndAnswer("niwaki", path, threads));
    theirs.push(await loadAndAnswer("node-llama-cpp", path, threads));
  }
  const of = (reports: LoadReport[], key: Measure) => median(reports.map((report) => report[key]));
  const kvBytes = ours[0]?.kvBytes ?? 0;
  // What a load may take: the packed weights, a little for packing them, the KV cache, and Node with the vocabulary.
  const allowedBytes = 1.15 * fileBytes + kvBytes + 250e6;
  const result = {
    machine: machine(),
    model: `random ${values.shape} shape, Q1_0, ${fileBytes} bytes`,
    threads,
    readSeconds: median(reads),
    ratios: {
      loadTime: of(ours, "loadSeconds") / of(theirs, "loadSeconds"),
      peakMemory: of(ours, "peakBytes") / of(theirs, "peakBytes"),
      peakMemoryToAllowed: of(ours, "peakBytes") / allowedBytes,
      loadTimeToReading: of(ours, "loadSeconds") / median(reads),
    },
    niwaki: ours,
    nodeLlamaCpp: theirs,
  };
  if (values.json) {
    console.log(JSON.stringify(result));
    return;
  }
  const row = (name: string, key: Measure, unit: string, scale = 1) => {
    const [a, b] = [of(ours, key) / scale, of(theirs, key) / scale];
    return [name, `${a.toFixed(2)} ${unit}`, `${b.toFixed(2)} ${unit}`, (a / b).toFixed(2)];
  };
  console.log(result.machine);
  console.log(`${result.model}, ${threads} threads, medians of ${values.rounds}`);
  console.log(`reading the file once: ${result.readSeconds.toFixed(2)} s`);
  printTable(
    ["", "niwaki", "node-llama-cpp", "ratio"],
    [
      row("load", "loadSeconds", "s"),
      row("first token, 16 of prompt", "firstTokenSeconds", "s"),
      row("decode", "tokensPerSecond", "tok/s"),
      row("peak memory", "peakBytes", "MB", 1e6),
      row("event loop delay p99", "eventLoopDelayP99", "ms"),
    ],
  );
  console.log(
    `peak memory allowed (1.15 × file + ${(kvBytes / 1e6).toFixed(0)} MB KV + 250 MB): ${(allowedBytes / 1e6).toFixed(0)} MB`,
  );
}

type LoadReport = Awaited<ReturnType<typeof loadAndAnswer>>;
type Measure = Exclude<keyof LoadReport, "kvBytes" | "weightBytes">;

async function loadAndAnswer(engine: EngineName, path: string, threads: number) {
  const job = { engine, path, threads, sequences: 1, contextTokens: CONTEXT_TOKENS, warmUp: false };
  return withEngines([job], async ([{ loaded, run }]) => {
    const task = { prompts: 1, promptTokens: PROMPT_TOKENS, tokens: ANSWER_TOKENS, seed: 1, watchEventLoop: true };
    const timing = await run(task);
    const [tokensPerSecond, eventLoopDelayP99] = [timing.tokensPerSecond!, timing.eventLoopDelayP99!];
    return { ...loaded, ...timing, tokensPerSecond, eventLoopDelayP99 };
  });
}

async function readSeconds(path: string): Promise<number> {
  const begun = performance.now();
  await readFile(path);
  return (performance.now() - begun) / 1000;
}
