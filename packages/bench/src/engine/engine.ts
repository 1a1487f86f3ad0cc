import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { shapes } from "@niwaki/testing";
import { machine } from "../machine.js";
import { cachedRandomModel } from "../models.js";
import { runProgram } from "../run-program.js";
import type {
  ArrivalReport,
  BlocksReport,
  EngineJob,
  PrefixReport,
  ScheduleReport,
  SharedReport,
  StepsReport,
} from "./job.js";
import { type EngineResult, judge, show } from "./show.js";
import { FULL, QUICK } from "./workload.js";

const parts = ["blocks", "schedule", "steps", "shared", "prefix", "arrival"] as const;
type Part = (typeof parts)[number];

/**
 * What the engine adds to the kernels and what it saves them: block operations, scheduling, overhead of a step, requests
 * that share a prefix against node-llama-cpp, a cached prefix, and chats beside a long prompt. Each part runs in a process
 * of its own.
 */
export async function engineBenchmark(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      only: { type: "string", default: parts.join(",") },
      threads: { type: "string", default: String(availableParallelism()) },
      quick: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
    },
  });
  const wanted = partNames(values.only);
  const threads = Number(values.threads);
  if (!Number.isInteger(threads) || threads < 1) {
    throw new Error(`--threads is ${values.threads}; give a whole number from 1 up`);
  }
  const workload = values.quick ? QUICK : FULL;
  const shape = shapes["1.7b"];
  const path = await cachedRandomModel("1.7b", shape, 1);
  const run = <Report>(job: EngineJob) => {
    console.error(`${job.measure}${job.measure === "shared" ? `, ${job.engine}` : ""} …`);
    return runProgram<Report>("engine/child", [JSON.stringify(job)]);
  };
  const result: EngineResult = { machine: machine(), threads, model: "random 1.7b shape, Q1_0, f16 KV", workload };

  if (wanted.has("blocks")) {
    result.blocks = await run<BlocksReport>({ measure: "blocks", rounds: workload.rounds });
  }
  if (wanted.has("schedule")) {
    result.schedule = await run<ScheduleReport>({ measure: "schedule", rounds: workload.rounds });
  }
  if (wanted.has("steps")) {
    const two = await cachedRandomModel("1.7b-2-layers", { ...shape, layers: 2 }, 1);
    result.steps = await run<StepsReport>({ measure: "steps", path: two, threads, workload: workload.steps });
  }
  if (wanted.has("shared")) {
    const job = { measure: "shared", path, threads, workload: workload.shared } as const;
    result.shared = {
      niwaki: await run<SharedReport>({ ...job, engine: "niwaki" }),
      nodeLlamaCppWithStates: await run<SharedReport>({ ...job, engine: "node-llama-cpp with states" }),
      nodeLlamaCpp: await run<SharedReport>({ ...job, engine: "node-llama-cpp" }),
    };
  }
  if (wanted.has("prefix")) {
    result.prefix = await run<PrefixReport>({ measure: "prefix", path, threads, workload: workload.prefix });
  }
  if (wanted.has("arrival")) {
    result.arrival = await run<ArrivalReport>({ measure: "arrival", path, threads, workload: workload.arrival });
  }
  if (values.json) console.log(JSON.stringify({ targets: judge(result), ...result }));
  else show(result);
}

/** @throws Error naming the parts that there are. */
function partNames(list: string): Set<Part> {
  const names = list.split(",").filter(Boolean);
  for (const name of names) {
    if (!parts.some((part) => part === name)) {
      throw new Error(`unknown part ${name}; known are ${parts.join(", ")}`);
    }
  }
  return new Set(parts.filter((part) => names.includes(part)));
}
