import { monitorEventLoopDelay } from "node:perf_hooks";
import { randomTokens } from "@niwaki/testing";
import { peakMemory } from "../machine.js";
import type { Engine, Job, Report, Task, Timing } from "./engine.js";

/** Runs the job in its only argument. Each engine is imported only where it runs: its memory is measured. */
async function run(job: Job): Promise<Report> {
  const open =
    job.engine === "niwaki"
      ? (await import("./niwaki.js")).openNiwaki
      : (await import("./node-llama-cpp.js")).openNodeLlamaCpp;
  const begun = performance.now();
  const engine = await open(job);
  const loadSeconds = (performance.now() - begun) / 1000;
  if (job.warmUp) await time(engine, { prompts: job.sequences, promptTokens: 4, tokens: 4, seed: 0 });
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  const timings: Timing[] = [];
  for (const task of job.tasks) timings.push(await time(engine, task));
  delay.disable();
  const report = {
    loadSeconds,
    peakBytes: peakMemory(),
    kvBytes: engine.kvBytes,
    weightBytes: engine.weightBytes,
    eventLoopDelayP99: delay.percentile(99) / 1e6,
    timings,
  };
  await engine.dispose();
  return report;
}

async function time(engine: Engine, { prompts: count, promptTokens, tokens, seed }: Task): Promise<Timing> {
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

run(JSON.parse(process.argv[2]!) as Job).then((report) => console.log(JSON.stringify(report)));
