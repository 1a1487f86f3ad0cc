import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { GgufFile } from "@niwaki/gguf";
import { readBaseShape } from "@niwaki/lora";
import { shapes } from "@niwaki/testing";
import { machine } from "../machine.js";
import { cachedRandomModel, shapeName } from "../models.js";
import { runProgram } from "../run-program.js";
import { cachedRandomAdapter } from "./files.js";
import type { AdaptersJob, PairsReport, SwapReport } from "./job.js";
import { type AdaptersResult, judge } from "./result.js";
import { show } from "./show.js";
import { FULL, QUICK } from "./workload.js";

/** What adapters cost: one request, many requests with different ones, and an adapter that is in no slot. */
export async function adaptersBenchmark(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      shape: { type: "string", default: "8b" },
      threads: { type: "string", default: String(availableParallelism()) },
      quick: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
    },
  });
  const shape = shapeName(values.shape);
  const threads = Number(values.threads);
  if (!Number.isInteger(threads) || threads < 1) {
    throw new Error(`--threads is ${values.threads}; give a whole number from 1 up`);
  }
  const workload = values.quick ? QUICK : FULL;
  const path = await cachedRandomModel(shape, shapes[shape], 1);
  const base = readBaseShape(await GgufFile.open(path));
  const adapters: string[] = [];
  for (let seed = 1; seed <= workload.adapters; seed++) {
    adapters.push(await cachedRandomAdapter(shape, base, { rank: 16 }, seed));
  }
  const small = await cachedRandomAdapter(shape, base, { rank: 1, targetModules: ["q_proj"] }, 1);
  const run = <Report>(what: string, job: AdaptersJob) => {
    console.error(`${what} …`);
    return runProgram<Report>("adapters/child", [JSON.stringify(job)]);
  };
  const model = { path, threads, adapters };
  const one = { ...model, measure: "pairs", adapters: adapters.slice(0, 1), workload: workload.alone } as const;
  const many = { ...model, measure: "pairs", workload: workload.together, type: "f16" } as const;
  const result: AdaptersResult = {
    machine: machine(),
    threads,
    model: `random ${shape} shape, Q1_0, f16 KV`,
    workload,
    f16: await run<PairsReport>("one request, f16", { ...one, type: "f16" }),
    i8: await run<PairsReport>("one request, i8", { ...one, type: "i8" }),
    together: await run<PairsReport>(`${workload.together.requests} requests`, many),
    swap: await run<SwapReport>("slots", { ...model, measure: "swap", small, workload: workload.swap }),
  };
  if (values.json) console.log(JSON.stringify({ targets: judge(result), ...result }));
  else show(result);
}
