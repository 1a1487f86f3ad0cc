import type { Buffer, Device, TrainingAdapter, TrainingEncoder, TrainingPlan } from "@niwaki/kernels-native";
import { type LoraAdapter, type LoraModule, loraModules } from "@niwaki/lora";
import type { Qwen3Config } from "../config.js";
import type { LayerWeights } from "../layer.js";
import type { ModelWeights } from "../plan.js";

/** Which tensor of its matrix a module is: Q | K | V and gate | up are stacked. */
const parts: Readonly<Record<LoraModule, number>> = {
  q_proj: 0,
  k_proj: 1,
  v_proj: 2,
  o_proj: 0,
  gate_proj: 0,
  up_proj: 1,
  down_proj: 0,
};

/** The trained additions to some modules of a layer. */
type LayerAdapters = (...modules: LoraModule[]) => TrainingAdapter[];

/** One layer of Qwen3, as in ../layer.ts, every activation kept. */
function encodeLayer(
  e: TrainingEncoder,
  w: LayerWeights,
  hidden: Buffer,
  adapters: LayerAdapters,
  c: Qwen3Config,
): Buffer {
  const normed = e.rmsNorm(hidden, w.attnNorm, c.rmsNormEps);
  const qkv = e.linear(normed, w.qkv, { adapters: adapters("q_proj", "k_proj", "v_proj") });
  const qk = e.normRope(qkv, c, w.qNorm, w.kNorm, c.rmsNormEps);
  const attention = e.causalAttention(qk, qkv, c);
  const attended = e.linear(attention, w.attnOutput, { adapters: adapters("o_proj"), residual: hidden });
  const ffnNormed = e.rmsNorm(attended, w.ffnNorm, c.rmsNormEps);
  const gateUp = e.linear(ffnNormed, w.gateUp, { adapters: adapters("gate_proj", "up_proj") });
  return e.linear(e.swiglu(gateUp), w.down, { adapters: adapters("down_proj"), residual: attended });
}

/**
 * Encodes the model with the adapter's modules to be trained. The plan's parameters stand in the order of the adapter's
 * targets: A, then B, of each.
 */
export function encodeTraining(
  device: Device,
  c: Qwen3Config,
  w: ModelWeights,
  adapter: LoraAdapter,
  limits: { maxRows: number; maxSequence: number },
): TrainingPlan {
  const { maxRows, maxSequence } = limits;
  const { vocabulary, rope } = c;
  return device.encodeTraining({ maxRows, maxOutputs: maxRows, maxSequence, vocabulary, rope }, (e) => {
    e.label("token_embd");
    let hidden = e.embed(w.embedding);
    for (const [index, layer] of w.layers.entries()) {
      e.label(`blk.${index}`);
      const adapters: LayerAdapters = (...modules) =>
        loraModules
          .filter((module) => modules.includes(module))
          .flatMap((module) => {
            const target = adapter.target(index, module);
            return target === undefined ? [] : [{ part: parts[module], rank: target.rank, scale: target.scale }];
          });
      hidden = encodeLayer(e, layer, hidden, adapters, c);
    }
    e.label("output");
    return e.linear(e.rmsNorm(e.selectOutputs(hidden), w.outputNorm, c.rmsNormEps), w.lmHead);
  });
}
