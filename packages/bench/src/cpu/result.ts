import { median, type Outliers } from "../statistics.js";
import type { Measure, Measured, Samples } from "./measure.js";

export interface MeasuredModel extends Measured {
  readonly model: string;
  readonly fileBytes: number;
}

export interface CpuResult {
  readonly machine: string;
  readonly threads: number;
  readonly rounds: number;
  /** Tokens of the long prompt. */
  readonly promptTokens: number;
  /** What both engines did, by shape. */
  readonly comparisons: Readonly<Record<string, MeasuredModel>>;
  /** What Niwaki did with other models. */
  readonly alone: Readonly<Record<string, MeasuredModel>>;
  readonly rows: { readonly model: string; readonly seconds: readonly number[]; readonly outliers: Outliers };
}

/** The median of what was measured; undefined where nothing was. */
export function medianOf(samples: Samples, measure: keyof Samples): number | undefined {
  const values = samples[measure];
  return values === undefined ? undefined : median(values);
}

/** The peer's median beside ours: its KV is always float16. */
export function peerMedianOf({ nodeLlamaCpp }: Measured, measure: Measure): number | undefined {
  return medianOf(nodeLlamaCpp, measure === "longKv8" ? "long" : measure);
}

/** Ours over theirs; for loading, which is a time, less is better. */
export function ratioOf(measured: Measured, measure: Measure): number | undefined {
  const [ours, theirs] = [medianOf(measured.niwaki, measure), peerMedianOf(measured, measure)];
  return ours === undefined || theirs === undefined ? undefined : ours / theirs;
}

/** The bytes of Niwaki's repacked weights over those of the file. */
export function packedToFile({ niwaki, fileBytes }: MeasuredModel): number {
  return medianOf(niwaki, "weightBytes")! / fileBytes;
}

/** The share of reading alone at which decoding reads: each time by that moment's, as memory is not equally fast for long. */
export function shareOfReading({ reading }: Measured, measure: Measure): number | undefined {
  const readings = reading[measure];
  return readings === undefined ? undefined : median(readings.map(({ decoding, alone }) => decoding / alone));
}

/** Bytes a second that the machine read from memory. */
export function readBoundOf({ comparisons, alone }: CpuResult): number {
  const readings = [...Object.values(comparisons), ...Object.values(alone)].flatMap(({ reading }) =>
    Object.values(reading).flat(),
  );
  return median(readings.map(({ alone }) => alone));
}

const MEASURES = ["decode", "prefill", "batch", "long", "longKv8", "load"] as const satisfies Measure[];

/** One object for programs: ratios by shape, the medians behind them, and all samples. */
export function summary(result: CpuResult) {
  const each = <Value>(models: Readonly<Record<string, MeasuredModel>>, of: (measured: MeasuredModel) => Value) =>
    Object.fromEntries(Object.entries(models).map(([name, measured]) => [name, of(measured)]));
  const measures = (of: (measure: Measure) => number | undefined) =>
    Object.fromEntries(MEASURES.map((measure) => [measure, of(measure)]));
  return {
    ratios: each(result.comparisons, (measured) => measures((measure) => ratioOf(measured, measure))),
    medians: each(result.comparisons, ({ niwaki, nodeLlamaCpp }) => ({
      niwaki: measures((measure) => medianOf(niwaki, measure)),
      nodeLlamaCpp: measures((measure) => medianOf(nodeLlamaCpp, measure)),
    })),
    packedToFile: each(result.comparisons, packedToFile),
    readBound: readBoundOf(result),
    shareOfReading: each({ ...result.comparisons, ...result.alone }, (measured) =>
      measures((measure) => shareOfReading(measured, measure)),
    ),
    ...result,
  };
}
