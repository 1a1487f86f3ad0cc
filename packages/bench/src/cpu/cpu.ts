import { writeFileSync } from "node:fs";
import { stat } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { type RandomModelShape, shapes } from "@niwaki/testing";
import { machine } from "../machine.js";
import { ReadBound } from "../memory/read-bound.js";
import { cachedRandomModel, modelSize, outputDirectory, type ShapeName, shapeName } from "../models.js";
import { median, outliers } from "../statistics.js";
import {
  FULL,
  LONG_CONTEXT,
  measureAlone,
  measureBatch,
  measureLong,
  measureOne,
  measureRows,
  QUICK,
  type Setup,
} from "./measure.js";
import { type CpuResult, type MeasuredModel, summary } from "./result.js";
import { chart, showTable } from "./show.js";

/** The shape of what Niwaki is measured on alone. */
const ALONE = "1.7b";

/**
 * Random models in Q1_0 on Niwaki and on node-llama-cpp, in processes of their own and in turn; in Q2_0 on Niwaki alone;
 * and against what the machine's memory gives.
 */
export async function cpuBenchmark(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      shapes: { type: "string", default: "8b,1.7b" },
      long: { type: "string", default: "1.7b" },
      rounds: { type: "string" },
      threads: { type: "string", default: String(availableParallelism()) },
      quick: { type: "boolean", default: false },
      svg: { type: "string", default: join(outputDirectory(), "cpu.svg") },
      json: { type: "boolean", default: false },
    },
  });
  const workload = values.quick ? QUICK : FULL;
  const rounds = whole("rounds", values.rounds ?? (values.quick ? "1" : "3"));
  const threads = whole("threads", values.threads);
  const long = names(values.long);
  const bound = new ReadBound(threads);
  const prepare = async (file: string, shape: RandomModelShape): Promise<Prepared> => {
    const path = await cachedRandomModel(file, shape, 1);
    const fileBytes = (await stat(path)).size;
    const model = `random weights, ${shape.type}, ${(fileBytes / 1e6).toFixed(0)} MB`;
    return {
      setup: { path, decodedBytes: (await modelSize(path)).bytes, threads, workload, bound },
      measured: { model, fileBytes, niwaki: {}, nodeLlamaCpp: {}, reading: {} },
    };
  };
  const compared = new Map<ShapeName, Prepared>();
  for (const name of names(values.shapes)) compared.set(name, await prepare(name, shapes[name]));
  const alone = new Map<string, Prepared>();
  for (const type of ["Q2_0", "Q2_0_G128"] as const)
    alone.set(`${ALONE} ${type}`, await prepare(`${ALONE}-${type}`, { ...shapes[ALONE], type }));
  const { setup: setupOfRows } = await prepare(ALONE, shapes[ALONE]);
  const secondsByRows: number[][] = [];

  for (let round = 0; round < rounds; round++) {
    console.error(`round ${round + 1} of ${rounds} …`);
    for (const { setup, measured } of compared.values()) {
      await measureOne(setup, round, measured);
      await measureBatch(setup, round, measured);
    }
    for (const { setup, measured } of alone.values()) await measureAlone(setup, round, measured);
    await measureRows(setupOfRows, round, secondsByRows);
  }
  for (const name of long) {
    const prepared = compared.get(name);
    if (prepared === undefined) continue;
    console.error(`${LONG_CONTEXT} tokens of context, ${name} …`);
    await measureLong(prepared.setup, rounds, prepared.measured);
  }
  await bound.end();
  const seconds = secondsByRows.map(median);

  const measuredOf = (models: Map<string, Prepared>) =>
    Object.fromEntries([...models].map(([name, { measured }]) => [name, measured]));
  const result: CpuResult = {
    machine: machine(),
    threads,
    rounds,
    promptTokens: workload.promptTokens,
    comparisons: measuredOf(compared),
    alone: measuredOf(alone),
    rows: { model: `the ${ALONE} shape in Q1_0`, seconds, outliers: outliers(seconds) },
  };
  writeFileSync(values.svg, chart(result));
  if (values.json) console.log(JSON.stringify(summary(result)));
  else {
    showTable(result);
    console.log(`chart: ${values.svg}`);
  }
}

/** A model and what is measured of it. */
interface Prepared {
  readonly setup: Setup;
  readonly measured: MeasuredModel;
}

function names(list: string): ShapeName[] {
  return list.split(",").filter(Boolean).map(shapeName);
}

/** @throws Error unless the option is a whole number from 1 up. */
function whole(option: string, value: string): number {
  const number = Number(value);
  if (Number.isInteger(number) && number >= 1) return number;
  throw new Error(`--${option} is ${value}; give a whole number from 1 up`);
}
