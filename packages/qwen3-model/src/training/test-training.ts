import { GgufFile } from "@niwaki/gguf";
import { Device, MappedFile } from "@niwaki/kernels-native";
import { LoraAdapter, type LoraConfig, loraConfig, readBaseShape } from "@niwaki/lora";
import { examineModel } from "../examine.js";
import { loadWeights } from "../weights.js";
import { encodeTraining } from "./forward.js";

/** An adapter whose A and B are both random, so that every gradient is something. */
export function randomAdapter(file: GgufFile, config: Partial<LoraConfig>): LoraAdapter {
  let state = 1;
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 31 - 1;
  };
  return LoraAdapter.from(loraConfig(config), readBaseShape(file), ({ rank, inputs, outputs }) => ({
    a: Float32Array.from({ length: rank * inputs }, () => random() / Math.sqrt(inputs)),
    b: Float32Array.from({ length: outputs * rank }, () => 0.5 * random()),
  }));
}

/** A training plan of a whole model. */
export async function trainingPlan(path: string, adapter: LoraAdapter, maxRows: number) {
  const file = await GgufFile.open(path);
  const { config } = examineModel(file);
  const device = Device.open({ threads: 2 });
  const mapping = MappedFile.open(path);
  const { weights } = await loadWeights(device, file, mapping, config!, {});
  mapping.dispose();
  const plan = encodeTraining(device, config!, weights, adapter, { maxRows, maxSequence: maxRows });
  return { plan, [Symbol.asyncDispose]: () => device.dispose() };
}
