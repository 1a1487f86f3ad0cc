import { monitorEventLoopDelay } from "node:perf_hooks";
import { randomTokens } from "@niwaki/testing";
import { getLlama, LlamaLogLevel, type Token } from "node-llama-cpp";
import { peakMemory } from "../machine.js";
import { ANSWER_TOKENS, CONTEXT_TOKENS, type LoadReport, PROMPT_TOKENS } from "./report.js";

const [path = "", threads] = process.argv.slice(2);

async function measure(): Promise<LoadReport> {
  const llama = await getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    maxThreads: Number(threads),
    logLevel: LlamaLogLevel.error,
  });
  const begun = performance.now();
  const model = await llama.loadModel({ modelPath: path, gpuLayers: 0 });
  const context = await model.createContext({ contextSize: CONTEXT_TOKENS, threads: Number(threads) });
  const sequence = context.getSequence();
  const loaded = performance.now();
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  let first = 0;
  let tokens = 0;
  const prompt = randomTokens(PROMPT_TOKENS, model.fileInfo.metadata.tokenizer.ggml.tokens.length, 1) as Token[];
  for await (const _ of sequence.evaluate(prompt, { temperature: 0, yieldEogToken: true })) {
    tokens++;
    if (tokens === 1) first = performance.now();
    if (tokens === ANSWER_TOKENS) break;
  }
  const ended = performance.now();
  delay.disable();
  const report = {
    loadSeconds: (loaded - begun) / 1000,
    firstTokenSeconds: (first - loaded) / 1000,
    tokens,
    tokensPerSecond: ((tokens - 1) * 1000) / (ended - first),
    peakBytes: peakMemory(),
    kvBytes: null,
    eventLoopDelayP99: delay.percentile(99) / 1e6,
  };
  await llama.dispose();
  return report;
}

measure().then((report) => console.log(JSON.stringify(report)));
