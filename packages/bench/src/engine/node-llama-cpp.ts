import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { getLlama, type LlamaContextSequence, LlamaLogLevel, type Token } from "node-llama-cpp";
import type { SharedPrefix, SharedReport } from "./job.js";
import { sharedPrompts } from "./shared-prompts.js";

/**
 * Requests at once, each in a sequence of one context. Without states each computes its whole prompt, as users write it;
 * with states what they share is computed once, saved, and loaded into each sequence.
 */
export async function measureSharedPeer(
  path: string,
  threads: number,
  workload: SharedPrefix,
  withStates: boolean,
): Promise<SharedReport> {
  const { requests, sharedTokens, ownTokens, answerTokens } = workload;
  const llama = await getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    maxThreads: threads,
    logLevel: LlamaLogLevel.error,
  });
  const model = await llama.loadModel({ modelPath: path, gpuLayers: 0 });
  const contextSize = sharedTokens + ownTokens + answerTokens + 16;
  const context = await model.createContext({ contextSize, sequences: requests, threads });
  const sequences = Array.from({ length: requests }, () => context.getSequence());
  const prompts = sharedPrompts(workload, model.fileInfo.metadata.tokenizer.ggml.tokens.length);
  await answer(sequences[0]!, [1, 2, 3, 4], 4);
  await sequences[0]!.clearHistory();
  const directory = await mkdtemp(join(tmpdir(), "niwaki-bench-"));
  const begun = performance.now();
  if (withStates) await shareState(sequences, prompts[0]!.shared, join(directory, "state"));
  await Promise.all(
    prompts.map(({ shared, own }, index) =>
      answer(sequences[index]!, withStates ? own : [...shared, ...own], answerTokens),
    ),
  );
  const seconds = (performance.now() - begun) / 1000;
  await rm(directory, { recursive: true });
  await llama.dispose();
  return { seconds, steps: null };
}

async function shareState(sequences: readonly LlamaContextSequence[], tokens: readonly number[], path: string) {
  const [first, ...others] = sequences;
  await first!.evaluateWithoutGeneratingNewTokens(tokens as Token[]);
  await first!.saveStateToFile(path);
  for (const sequence of others) await sequence.loadStateFromFile(path, { acceptRisk: true });
}

/** Exactly `count` tokens, past any end of turn. */
async function answer(sequence: LlamaContextSequence, tokens: readonly number[], count: number): Promise<void> {
  let left = count;
  for await (const _ of sequence.evaluate(tokens as Token[], { temperature: 0, yieldEogToken: true })) {
    if (--left === 0) return;
  }
  throw new Error(`an answer ended ${left} tokens early`);
}
