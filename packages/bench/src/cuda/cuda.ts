import { stat } from "node:fs/promises";
import { parseArgs } from "node:util";
import { type Gpu, type GpuBounds, gpus, measureGpu } from "@niwaki/kernels-native";
import { shapes } from "@niwaki/testing";
import { withEngines } from "../engines/engine.js";
import { machine } from "../machine.js";
import { cachedRandomModel, modelSize, shapeName } from "../models.js";
import { median } from "../statistics.js";
import { printTable } from "../table.js";
import {
  BATCH,
  boundOf,
  boundsOf,
  type CudaResult,
  LONG_CONTEXT,
  MEASURES,
  type MeasuredModel,
  NAMES,
  PROMPT_TOKENS,
  type Samples,
  SHORT_CONTEXT,
  summary,
} from "./result.js";

/** Half of them come before the context that a measure names, half after it. */
const DECODED_TOKENS = 96;
const BATCH_TOKENS = 64;

/** Random models in Q1_0 on a GPU, against what the GPU's memory and matrix units give, measured in the same run. */
export async function cudaBenchmark(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      shapes: { type: "string", default: "8b,1.7b" },
      rounds: { type: "string", default: "5" },
      gpu: { type: "string" },
      json: { type: "boolean", default: false },
    },
  });
  const rounds = Number(values.rounds);
  if (!Number.isInteger(rounds) || rounds < 1) throw new Error(`--rounds is ${values.rounds}; give a whole number`);
  const names = values.shapes.split(",").map(shapeName);
  const { gpus: found, driver, reason } = gpus();
  const gpu = found.find(({ index, usable }) => (values.gpu === undefined ? usable : index === Number(values.gpu)));
  if (gpu === undefined || !gpu.usable) {
    console.error(`cuda: there is no usable GPU${values.gpu === undefined ? "" : ` ${values.gpu}`} to measure.`);
    if (reason !== undefined) console.error(reason);
    process.exitCode = 1;
    return;
  }
  const bounds: GpuBounds[] = [];
  const models: Record<string, MeasuredModel> = {};
  for (const name of names) {
    const path = await cachedRandomModel(name, shapes[name], 1);
    console.error(`${name}, ${rounds} rounds …`);
    models[name] = {
      model: `random weights, ${shapes[name].type}, ${((await stat(path)).size / 1e6).toFixed(0)} MB`,
      size: await modelSize(path),
      samples: await measure(path, gpu, rounds, bounds),
    };
  }
  const result: CudaResult = { machine: machine(), gpu: gpu.name, driver, rounds, bounds, models };
  if (values.json) console.log(JSON.stringify(summary(result)));
  else showTable(result);
}

/** Each round begins with the bounds; what is loaded stays from round to round. */
async function measure(path: string, { index: gpu }: Gpu, rounds: number, bounds: GpuBounds[]): Promise<Samples> {
  const samples: Samples = { decode: [], long: [], prompt: [], batch: [] };
  const niwaki = { engine: "niwaki", path, threads: 1, gpu, chunkSize: PROMPT_TOKENS, warmUp: true } as const;
  const jobs = [
    { ...niwaki, sequences: 1, contextTokens: LONG_CONTEXT + DECODED_TOKENS },
    { ...niwaki, sequences: BATCH, contextTokens: 2 * BATCH_TOKENS },
  ] as const;
  await withEngines(jobs, async ([one, many]) => {
    let seed = 0;
    const decode = async (contextTokens: number) => {
      const promptTokens = contextTokens - DECODED_TOKENS / 2;
      return (await one.run({ prompts: 1, promptTokens, tokens: DECODED_TOKENS, seed: ++seed })).tokensPerSecond!;
    };
    for (let round = 0; round < rounds; round++) {
      bounds.push(measureGpu(gpu));
      samples.decode.push(await decode(SHORT_CONTEXT));
      samples.long.push(await decode(LONG_CONTEXT));
      const prompt = await one.run({ prompts: 1, promptTokens: PROMPT_TOKENS, tokens: 1, seed: ++seed });
      samples.prompt.push(PROMPT_TOKENS / prompt.firstTokenSeconds);
      const batch = await many.run({ prompts: BATCH, promptTokens: 4, tokens: BATCH_TOKENS, seed: ++seed });
      samples.batch.push(batch.tokensPerSecond!);
    }
  });
  return samples;
}

function showTable(result: CudaResult): void {
  const bounds = boundsOf(result);
  console.log(`${result.gpu}, driver ${result.driver ?? "unknown"}; ${result.machine}`);
  for (const [name, { model }] of Object.entries(result.models)) console.log(`${name}: ${model}`);
  console.log(
    `medians of ${result.rounds}; the GPU alone: ${(bounds.bytesPerSecond / 1e12).toFixed(2)} TB/s read from memory, ` +
      `${(bounds.flopsPerSecond / 1e12).toFixed(0)} TFLOP/s in float16`,
  );
  console.log("");
  const rows = Object.entries(result.models).flatMap(([name, { size, samples }]) =>
    MEASURES.map((measure) => {
      const [rate, bound] = [median(samples[measure]), boundOf(size, bounds, measure)];
      return [`${name} ${NAMES[measure]}`, rate.toFixed(0), bound.toFixed(0), `${((100 * rate) / bound).toFixed(0)}%`];
    }),
  );
  printTable(["", "tokens/s", "bound", "of the bound"], rows);
}
