import { writeFileSync } from "node:fs";
import { stat } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { type RandomModelShape, shapes } from "@niwaki/testing";
import { machine } from "../machine.js";
import { cachedRandomModel, decodedBytes, outputDirectory, type ShapeName, shapeName } from "../models.js";
import { outliers } from "../statistics.js";
import {
  type BoundSample,
  FULL,
  measureAgainstBound,
  measureBatch,
  measureLong,
  measureOne,
  measureRows,
  QUICK,
  type Sample,
} from "./measure.js";
import { type CpuResult, summary } from "./result.js";
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
  const compared: Model<ShapeName>[] = [];
  for (const name of names(values.shapes)) compared.push(await model(name, name, shapes[name]));
  const ternary: Model<string>[] = [];
  for (const type of ["Q2_0", "Q2_0_G128"] as const) {
    ternary.push(await model(`${ALONE} ${type}`, `${ALONE}-${type}`, { ...shapes[ALONE], type }));
  }

  const samples = new Map(compared.map(({ name }) => [name, { niwaki: [] as Sample[], nodeLlamaCpp: [] as Sample[] }]));
  const decoding = [...compared, ...ternary];
  const boundSamples = new Map(decoding.map(({ name }) => [name, [] as BoundSample[]]));
  for (let round = 0; round < rounds; round++) {
    console.error(`round ${round + 1} of ${rounds} …`);
    for (const { name, path } of compared) {
      const { niwaki, nodeLlamaCpp } = samples.get(name)!;
      // A prompt of 4,096 tokens takes the peer minutes: once is enough.
      const withLong = round === 0 && long.includes(name);
      niwaki.push(await measureOne("niwaki", path, threads, workload, round, withLong));
      nodeLlamaCpp.push(await measureOne("node-llama-cpp", path, threads, workload, round, withLong));
      if (long.includes(name)) {
        if (!withLong) niwaki.push(await measureLong(path, threads, "f16", round));
        niwaki.push(await measureLong(path, threads, "q8", round));
      }
      niwaki.push(await measureBatch("niwaki", path, threads, workload, round));
      nodeLlamaCpp.push(await measureBatch("node-llama-cpp", path, threads, workload, round));
    }
    for (const { name, path } of decoding)
      boundSamples.get(name)!.push(await measureAgainstBound(path, threads, workload, round));
  }
  console.error("steps of 1 to 64 rows …");
  const rowsPath = await cachedRandomModel(ALONE, shapes[ALONE], 1);
  const seconds = await measureRows(rowsPath, threads, workload);

  const result: CpuResult = {
    machine: machine(),
    threads,
    rounds,
    promptTokens: workload.promptTokens,
    comparisons: Object.fromEntries(
      compared.map(({ name, model, decodedBytes, fileBytes }) => [
        name,
        { model, decodedBytes, fileBytes, ...samples.get(name)! },
      ]),
    ),
    againstBound: Object.fromEntries(
      decoding.map(({ name, model, decodedBytes }) => [
        name,
        { model, decodedBytes, samples: boundSamples.get(name)! },
      ]),
    ),
    rows: { model: `the ${ALONE} shape in Q1_0`, seconds, outliers: outliers(seconds) },
  };
  writeFileSync(values.svg, chart(result));
  if (values.json) console.log(JSON.stringify(summary(result)));
  else {
    showTable(result);
    console.log(`chart: ${values.svg}`);
  }
}

function names(list: string): ShapeName[] {
  return list.split(",").filter(Boolean).map(shapeName);
}

interface Model<Name> {
  readonly name: Name;
  readonly path: string;
  readonly model: string;
  readonly decodedBytes: number;
  readonly fileBytes: number;
}

async function model<Name>(name: Name, file: string, shape: RandomModelShape): Promise<Model<Name>> {
  const path = await cachedRandomModel(file, shape, 1);
  const bytes = (await stat(path)).size;
  return {
    name,
    path,
    model: `random weights, ${shape.type}, ${(bytes / 1e6).toFixed(0)} MB`,
    decodedBytes: await decodedBytes(path),
    fileBytes: bytes,
  };
}

/** @throws Error unless the option is a whole number from 1 up. */
function whole(option: string, value: string): number {
  const number = Number(value);
  if (Number.isInteger(number) && number >= 1) return number;
  throw new Error(`--${option} is ${value}; give a whole number from 1 up`);
}
