import type { Device, KvCache, Matrix, Plan, Vector } from "@niwaki/kernels-native";
import type { Qwen3Config } from "./config.js";
import { createScratch, encodeLayer, type LayerWeights } from "./layer.js";

export interface ModelWeights {
  readonly embedding: Matrix;
  readonly layers: readonly LayerWeights[];
  readonly outputNorm: Vector;
  /** The embedding itself when the model is tied. */
  readonly lmHead: Matrix;
}

/** Encodes the whole model once; the plan then runs any step of up to `maxRows` rows. */
export function encodeModel(
  device: Device,
  c: Qwen3Config,
  w: ModelWeights,
  kv: KvCache,
  limits: { maxRows: number; blockSize: number },
): Plan {
  const { maxRows, blockSize } = limits;
  return device.encode({ maxRows, maxOutputs: maxRows, vocabulary: c.vocabulary, blockSize }, (e) => {
    const s = createScratch(e, c);
    const selected = e.outputBuffer(c.hidden);
    const logits = e.outputBuffer(c.vocabulary);
    e.label("token_embd");
    e.embed(w.embedding, s.hidden);
    for (const [i, layer] of w.layers.entries()) {
      e.label(`blk.${i}`);
      encodeLayer(e, layer, s, kv.layer(i), c);
    }
    e.label("output");
    e.selectOutputs(s.hidden, selected);
    e.rmsNorm(selected, w.outputNorm, selected, c.rmsNormEps);
    e.linear(selected, w.lmHead, logits);
    return logits;
  });
}
