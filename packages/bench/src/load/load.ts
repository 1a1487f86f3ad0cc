import { execFile } from "node:child_process";
import { readFile, stat } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs, promisify } from "node:util";
import { shapes } from "@niwaki/testing";
import { machine, median } from "../machine.js";
import { cachedRandomModel } from "../models.js";
import type { LoadReport } from "./report.js";

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
  if (!(values.shape in shapes)) throw new Error(`unknown shape ${values.shape}; known are ${Object.keys(shapes)}`);
  const path = await cachedRandomModel(values.shape, shapes[values.shape as keyof typeof shapes], 1);
  const fileBytes = (await stat(path)).size;
  const ours: LoadReport[] = [];
  const theirs: LoadReport[] = [];
  const reads: number[] = [];
  for (let round = 0; round < Number(values.rounds); round++) {
    reads.push(await readSeconds(path));
    ours.push(await report("niwaki", path, values.threads));
    theirs.push(await report("node-llama-cpp", path, values.threads));
  }
  const of = (reports: LoadReport[], key: Exclude<keyof LoadReport, "kvBytes">) => median(reports.map((r) => r[key]));
  const kvBytes = ours[0]?.kvBytes ?? 0;
  // What a load may take: the packed weights, a little for packing them, the KV cache, and Node with the vocabulary.
  const allowedBytes = 1.15 * fileBytes + kvBytes + 250e6;
  const result = {
    machine: machine(),
    model: `random ${values.shape} shape, Q1_0, ${fileBytes} bytes`,
    threads: Number(values.threads),
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
  const row = (name: string, key: Exclude<keyof LoadReport, "kvBytes">, unit: string, scale = 1) => {
    const [a, b] = [of(ours, key) / scale, of(theirs, key) / scale];
    const cells = [a, b].map((value) => `${value.toFixed(2)} ${unit}`.padStart(16));
    console.log(`${name.padEnd(28)}${cells.join("")}${(a / b).toFixed(2).padStart(9)}`);
  };
  console.log(result.machine);
  console.log(`${result.model}, ${result.threads} threads, medians of ${values.rounds}`);
  console.log(`reading the file once: ${result.readSeconds.toFixed(2)} s`);
  console.log(`${"".padEnd(28)}${"niwaki".padStart(16)}${"node-llama-cpp".padStart(16)}${"ratio".padStart(9)}`);
  row("load", "loadSeconds", "s");
  row("first token, 16 of prompt", "firstTokenSeconds", "s");
  row("decode", "tokensPerSecond", "tok/s");
  row("peak memory", "peakBytes", "MB", 1e6);
  row("event loop delay p99", "eventLoopDelayP99", "ms");
  console.log(
    `peak memory allowed (1.15 × file + ${(kvBytes / 1e6).toFixed(0)} MB KV + 250 MB): ${(allowedBytes / 1e6).toFixed(0)} MB`,
  );
}

async function report(engine: "niwaki" | "node-llama-cpp", path: string, threads: string): Promise<LoadReport> {
  const program = fileURLToPath(new URL(`./load/${engine}.js`, import.meta.url));
  const { stdout } = await promisify(execFile)(process.execPath, [program, path, threads], { maxBuffer: 2 ** 24 });
  return JSON.parse(stdout.trim().split("\n").at(-1)!) as LoadReport;
}

async function readSeconds(path: string): Promise<number> {
  const begun = performance.now();
  await readFile(path);
  return (performance.now() - begun) / 1000;
}
