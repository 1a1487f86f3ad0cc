import type { GpuBounds } from "@niwaki/kernels-native";
import type { ModelSize } from "../models.js";
import { median } from "../statistics.js";

export const PROMPT_TOKENS = 512;
export const BATCH = 64;
export const SHORT_CONTEXT = 64;
export const LONG_CONTEXT = 2048;

/** Rows of a step of each measure, and how many of them need logits. */
const STEPS = {
  decode: { rows: 1, outputs: 1 },
  long: { rows: 1, outputs: 1 },
  prompt: { rows: PROMPT_TOKENS, outputs: 1 },
  batch: { rows: BATCH, outputs: BATCH },
} as const;

export type Measure = keyof typeof STEPS;
export const MEASURES = Object.keys(STEPS) as Measure[];

export const NAMES: Readonly<Record<Measure, string>> = {
  decode: `decode at ${SHORT_CONTEXT} tokens`,
  long: `decode at ${LONG_CONTEXT} tokens`,
  prompt: `prompt of ${PROMPT_TOKENS}`,
  batch: `${BATCH} together`,
};

/** Tokens a second of every round. */
export type Samples = Readonly<Record<Measure, number[]>>;

export interface MeasuredModel {
  readonly model: string;
  readonly size: ModelSize;
  readonly samples: Samples;
}

export interface CudaResult {
  readonly machine: string;
  /** The GPU's name. */
  readonly gpu: string;
  /** The driver's version, where Linux shows it. */
  readonly driver: string | null;
  readonly rounds: number;
  /** Of every round. */
  readonly bounds: readonly GpuBounds[];
  /** By shape. */
  readonly models: Readonly<Record<string, MeasuredModel>>;
}

/** The medians of what the GPU reached when it did nothing else. */
export function boundsOf({ bounds }: CudaResult): GpuBounds {
  return {
    bytesPerSecond: median(bounds.map(({ bytesPerSecond }) => bytesPerSecond)),
    flopsPerSecond: median(bounds.map(({ flopsPerSecond }) => flopsPerSecond)),
  };
}

/**
 * Tokens a second if steps took no longer than reading the weights once, and than their multiplications, whichever takes
 * longer: the first with few rows, the second with many.
 */
export function boundOf(size: ModelSize, bounds: GpuBounds, measure: Measure): number {
  const { rows, outputs } = STEPS[measure];
  const reading = size.bytes / bounds.bytesPerSecond;
  const multiplying = (2 * (size.layerWeights * rows + size.headWeights * outputs)) / bounds.flopsPerSecond;
  return rows / Math.max(reading, multiplying);
}

/** One object for programs: by shape and measure the medians, their bounds and their shares of these, and all samples. */
export function summary(result: CudaResult) {
  const bounds = boundsOf(result);
  const each = (of: (measured: MeasuredModel, measure: Measure) => number) =>
    Object.fromEntries(
      Object.entries(result.models).map(([name, measured]) => [
        name,
        Object.fromEntries(MEASURES.map((measure) => [measure, of(measured, measure)])),
      ]),
    );
  return {
    medians: each(({ samples }, measure) => median(samples[measure])),
    bounds: each(({ size }, measure) => boundOf(size, bounds, measure)),
    shareOfBound: each(({ samples, size }, measure) => median(samples[measure]) / boundOf(size, bounds, measure)),
    gpuBounds: bounds,
    measured: result,
  };
}
