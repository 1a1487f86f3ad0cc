import { getLlama, LlamaLogLevel, type Token } from "node-llama-cpp";
import type { Engine, Job } from "./engine.js";

/** The engine as its users write it: one context for all sequences, its own batching, float16 KV, defaults for the rest. */
export async function openNodeLlamaCpp({ path, threads, sequences, contextTokens }: Job): Promise<Engine> {
  const llama = await getLlama({
    gpu: false,
    build: "never",
    skipDownload: true,
    maxThreads: threads,
    logLevel: LlamaLogLevel.error,
  });
  const model = await llama.loadModel({ modelPath: path, gpuLayers: 0 });
  const context = await model.createContext({ contextSize: contextTokens, sequences, threads });
  const free = Array.from({ length: sequences }, () => context.getSequence());
  return {
    vocabulary: model.fileInfo.metadata.tokenizer.ggml.tokens.length,
    kvBytes: null,
    weightBytes: null,
    async generate(prompts, tokens, arrived) {
      await Promise.all(
        prompts.map(async (prompt, index) => {
          const sequence = free[index]!;
          // All but the last token may be there already; the last gives the first logits.
          await sequence.adaptStateToTokens(prompt.slice(0, -1) as Token[], false);
          const rest = prompt.slice(sequence.nextTokenIndex) as Token[];
          let left = tokens;
          for await (const _ of sequence.evaluate(rest, { temperature: 0, yieldEogToken: true })) {
            arrived(index);
            if (--left === 0) break;
          }
        }),
      );
    },
    dispose: () => llama.dispose(),
  };
}
