import { type BaseShape, projectionWeights } from "./base-shape.js";
import { type LoraConfig, planTargets } from "./lora-config.js";
import { type LoraModule, loraModules } from "./modules.js";

/** How a device keeps A and B: float16, or int8 with a float32 scale for each row of A and each column of B. */
export type DeviceType = "f16" | "i8";

/** What an adapter takes, before there is one. */
export interface AdapterEstimate {
  readonly parameters: number;
  /** Bytes in float32, as a trainer makes it. */
  readonly hostBytes: number;
  readonly deviceBytes: Readonly<Record<DeviceType, number>>;
  /** Parameters per weight of the base's projections. */
  readonly efficiencyRatio: number;
}

/** Bytes and parameters of an adapter of this configuration. @throws LoraError `bad-config` */
export function estimateAdapter(config: LoraConfig, shape: BaseShape): AdapterEstimate {
  const targets = planTargets(config, shape);
  const sum = (of: (target: (typeof targets)[number]) => number) =>
    targets.reduce((total, target) => total + of(target), 0);
  const magnitudes = config.useDora ? sum(({ outputs }) => outputs) : 0;
  const parameters = sum(({ rank, inputs, outputs }) => rank * (inputs + outputs)) + magnitudes;
  const deviceBytes = (type: DeviceType) =>
    sum(({ rank, inputs, outputs }) => targetBytes(rank, inputs, outputs, type)) + 4 * magnitudes;
  return {
    parameters,
    hostBytes: 4 * parameters,
    deviceBytes: { f16: deviceBytes("f16"), i8: deviceBytes("i8") },
    efficiencyRatio: parameters / projectionWeights(shape),
  };
}

/** Device memory for `slots` adapters of up to `maxRank` on `modules` (all seven unless given) of every layer, in bytes. */
export function slotsBytes(
  shape: BaseShape,
  {
    slots,
    maxRank,
    type,
    modules = loraModules,
  }: { slots: number; maxRank: number; type: DeviceType; modules?: readonly LoraModule[] },
): number {
  const perLayer = modules.reduce((sum, module) => sum + targetBytes(maxRank, ...shape.modules[module], type), 0);
  return slots * shape.layers * perLayer;
}

function targetBytes(rank: number, inputs: number, outputs: number, type: DeviceType): number {
  return type === "f16" ? 2 * rank * (inputs + outputs) : rank * (inputs + outputs) + 4 * 2 * rank;
}
