import { Qwen3Model } from "@niwaki/qwen3-model";
import type { Engine, Job } from "./engine.js";

export async function openNiwaki(job: Job): Promise<Engine> {
  const { path, threads, gpu, chunkSize, sequences, contextTokens, kvType = "f16" } = job;
  const model = await Qwen3Model.load(path, {
    ...(gpu === undefined ? { backend: "cpu", threads } : { backend: "cuda", gpu }),
    ...(chunkSize === undefined ? {} : { chunkSize }),
    contextLength: contextTokens,
    kvCacheTokens: sequences * contextTokens,
    kvType,
  });
  // Banning the end of the turn keeps both engines at the same number of tokens.
  const logitBias = new Map(model.tokenizer.endOfTurnTokenIds.map((id) => [id, Number.NEGATIVE_INFINITY]));
  return {
    vocabulary: model.tokenizer.vocabularySize,
    kvBytes: model.memory().kvCache,
    weightBytes: model.memory().weights,
    async generate(prompts, tokens, arrived) {
      await Promise.all(
        prompts.map(async (prompt, index) => {
          for await (const piece of model.generate(prompt, { maxTokens: tokens, logitBias })) {
            for (const _ of piece.tokens) arrived(index);
          }
        }),
      );
    },
    dispose: () => model.dispose(),
  };
}
