export {
  type AdapterMatrix,
  AdapterSlots,
  type AdapterSlotsOptions,
  type AdapterTarget,
  type AdapterType,
} from "./adapter-slots.js";
export { Buffer, QkvBuffer } from "./buffer.js";
export { type Backend, cpuTiers, Device, type DeviceOptions } from "./device.js";
export { Encoder, type PlanLimits } from "./encoder.js";
export { KernelError, type KernelErrorCode } from "./error.js";
export { type Gpu, type GpuBounds, type GpuReport, gpus, measureGpu } from "./gpu.js";
export { KvCache, KvLayer, type KvShape, type KvType } from "./kv-cache.js";
export { MappedFile } from "./mapped-file.js";
export { Matrix } from "./matrix.js";
export { Plan, type RunOptions } from "./plan.js";
export type { RopeOptions } from "./rope.js";
export type { AdapterUse, SampleResult, SampleSpec, Step, StepResult, StepSequence, TokenLogprob } from "./step.js";
export type { TensorSource } from "./tensor-source.js";
export { type TrainingAdapter, TrainingEncoder, type TrainingHeads, type TrainingLimits } from "./training-encoder.js";
export { type AdamWStep, type TrainingBatch, TrainingPlan, type TrainingState } from "./training-plan.js";
export { Vector } from "./vector.js";
export type { WeightType } from "./weight-type.js";
