import { monitorEventLoopDelay } from "node:perf_hooks";
import { randomTokens } from "@niwaki/testing";
import { answerMessages } from "../companion.js";
import { peakMemory } from "../machine.js";
import type { Engine, Job, Loaded, Task, Timing } from "./engine.js";

const delay = monitorEventLoopDelay({ resolution: 1 });
let engine: Engine | undefined;

answerMessages<Job | Task>(
  async (message) => ("engine" in message ? load(message) : run(message)),
  async () => engine?.dispose(),
);

/** Each engine is imported only where it runs: its memory is measured. */
async function load(job: Job): Promise<Loaded> {
  const open =
    job.engine === "niwaki"
      ? (await import("./niwaki.js")).openNiwaki
      : (await import("./node-llama-cpp.js")).openNodeLlamaCpp;
  const begun = performance.now();
  engine = await open(job);
  const loadSeconds = (performance.now() - begun) / 1000;
  if (job.warmUp) await time(engine, { prompts: job.sequences, promptTokens: 4, tokens: 4, seed: 0 });
  return { loadSeconds, kvBytes: engine.kvBytes, weightBytes: engine.weightBytes };
}

async function run(task: Task): Promise<Timing> {
  const { watchEventLoop = false } = task;
  if (watchEventLoop) delay.enable();
  const timing = await time(engine!, task);
  delay.disable();
  const eventLoopDelayP99 = watchEventLoop ? delay.percentile(99) / 1e6 : null;
  return { ...timing, peakBytes: peakMemory(), eventLoopDelayP99 };
}

async function time(engine: Engine, { prompts: count, promptTokens, tokens, seed }: Task) {
  const prompts = Array.from({ length: count }, (_, index) =>
    randomTokens(promptTokens, engine.vocabulary, seed * 1000 + index),
  );
  const arrived = new Array<number>(count).fill(0);
  const begun = performance.now();
  let waiting = count;
  let first = begun;
  let last = begun;
  let after = 0;
  await engine.generate(prompts, tokens, (prompt) => {
    last = performance.now();
    if (arrived[prompt]!++ === 0 && --waiting === 0) first = last;
    else if (waiting === 0) after++;
  });
  for (const [index, number] of arrived.entries()) {
    if (number !== tokens) throw new Error(`prompt ${index} of ${count} has ${number} tokens, not ${tokens}`);
  }
  return {
    firstTokenSeconds: (first - begun) / 1000,
    tokensPerSecond: after === 0 ? null : (after * 1000) / (last - first),
  };
}
