import { monitorEventLoopDelay } from "node:perf_hooks";
import { kvCacheBytes, Qwen3Model } from "@niwaki/qwen3-model";
import { randomTokens } from "@niwaki/testing";
import { peakMemory } from "../machine.js";
import { ANSWER_TOKENS, CONTEXT_TOKENS, type LoadReport, PROMPT_TOKENS } from "./report.js";

const [path = "", threads] = process.argv.slice(2);

async function measure(): Promise<LoadReport> {
  const begun = performance.now();
  const model = await Qwen3Model.load(path, { contextLength: CONTEXT_TOKENS, threads: Number(threads) });
  const loaded = performance.now();
  const delay = monitorEventLoopDelay({ resolution: 1 });
  delay.enable();
  let first = 0;
  let tokens = 0;
  // Banning the end of the turn keeps both sides at the same number of tokens.
  const logitBias = new Map(model.tokenizer.endOfTurnTokenIds.map((id) => [id, Number.NEGATIVE_INFINITY]));
  const prompt = randomTokens(PROMPT_TOKENS, model.tokenizer.vocabularySize, 1);
  for await (const piece of model.generate(prompt, { maxTokens: ANSWER_TOKENS, logitBias })) {
    tokens += piece.tokens.length;
    if (tokens === 1 && first === 0) first = performance.now();
  }
  const ended = performance.now();
  delay.disable();
  const report = {
    loadSeconds: (loaded - begun) / 1000,
    firstTokenSeconds: (first - loaded) / 1000,
    tokens,
    tokensPerSecond: ((tokens - 1) * 1000) / (ended - first),
    peakBytes: peakMemory(),
    kvBytes: kvCacheBytes(model.config, CONTEXT_TOKENS, "f16"),
    eventLoopDelayP99: delay.percentile(99) / 1e6,
  };
  await model.dispose();
  return report;
}

measure().then((report) => console.log(JSON.stringify(report)));
