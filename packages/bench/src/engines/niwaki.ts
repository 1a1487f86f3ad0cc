import { Qwen3Model } from "@niwaki/qwen3-model";
import type { Engine, Job } from "./engine.js";

export async function openNiwaki({ path, threads, sequences, contextTokens, kvType = "f16" }: Job): Promise<Engine> {
  const kvCacheTokens = sequences * contextTokens;
  const model = await Qwen3Model.load(path, { contextLength: contextTokens, kvCacheTokens, kvType, threads });
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
