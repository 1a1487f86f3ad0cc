import { median, type Outliers } from "../statistics.js";
import type { BoundSample, Measure, Sample } from "./measure.js";

/** What both engines did with one model. */
export interface Comparison {
  readonly model: string;
  /** Bytes of weights that a decoded token reads. */
  readonly decodedBytes: number;
  readonly fileBytes: number;
  readonly niwaki: readonly Sample[];
  readonly nodeLlamaCpp: readonly Sample[];
}

/** Decoding of a model beside reading memory alone. */
export interface AgainstBound {
  readonly model: string;
  readonly decodedBytes: number;
  readonly samples: readonly BoundSample[];
}

export interface CpuResult {
  readonly machine: string;
  readonly threads: number;
  readonly rounds: number;
  /** Tokens of the long prompt. */
  readonly promptTokens: number;
  readonly comparisons: Readonly<Record<string, Comparison>>;
  /** Of the models that are compared, then of those that only Niwaki runs. */
  readonly againstBound: Readonly<Record<string, AgainstBound>>;
  readonly rows: { readonly model: string; readonly seconds: readonly number[]; readonly outliers: Outliers };
}

/** The median of what was measured; undefined where nothing was. */
export function medianOf(samples: readonly Sample[], measure: keyof Sample): number | undefined {
  const values = samples.map((sample) => sample[measure]).filter((value) => value !== undefined);
  return values.length === 0 ? undefined : median(values);
}

/** The peer's median beside ours: its KV is always float16. */
export function peerMedianOf({ nodeLlamaCpp }: Comparison, measure: Measure): number | undefined {
  return medianOf(nodeLlamaCpp, measure === "longKv8" ? "long" : measure);
}

/** Ours over theirs; for loading, which is a time, less is better. */
export function ratioOf(comparison: Comparison, measure: Measure): number | undefined {
  const [ours, theirs] = [medianOf(comparison.niwaki, measure), peerMedianOf(comparison, measure)];
  return ours === undefined || theirs === undefined ? undefined : ours / theirs;
}

/** The bytes of Niwaki's repacked weights over those of the file. */
export function packedToFile({ niwaki, fileBytes }: Comparison): number {
  return medianOf(niwaki, "weightBytes")! / fileBytes;
}

/** The share of the bound at which decoding reads its weights: each sample by its own bound, as memory is not equally fast for long. */
export function shareOfBound({ samples, decodedBytes }: AgainstBound): number {
  return median(samples.map(({ tokensPerSecond, readBound }) => (tokensPerSecond * decodedBytes) / readBound));
}

/** Bytes a second that the machine read from memory. */
export function readBoundOf({ againstBound }: CpuResult): number {
  return median(Object.values(againstBound).flatMap(({ samples }) => samples.map(({ readBound }) => readBound)));
}

const MEASURES = ["decode", "prefill", "batch", "long", "longKv8", "load"] as const satisfies Measure[];

/** One object for programs: ratios by shape, the medians behind them, and all samples. */
export function summary(result: CpuResult) {
  const each = <Value>(of: (comparison: Comparison) => Value) =>
    Object.fromEntries(Object.entries(result.comparisons).map(([name, comparison]) => [name, of(comparison)]));
  const measured = (of: (measure: Measure) => number | undefined) =>
    Object.fromEntries(MEASURES.map((measure) => [measure, of(measure)]));
  return {
    ratios: each((comparison) => measured((measure) => ratioOf(comparison, measure))),
    medians: each(({ niwaki, nodeLlamaCpp }) => ({
      niwaki: measured((measure) => medianOf(niwaki, measure)),
      nodeLlamaCpp: measured((measure) => medianOf(nodeLlamaCpp, measure)),
    })),
    packedToFile: each(packedToFile),
    readBound: readBoundOf(result),
    decodeToBound: Object.fromEntries(
      Object.entries(result.againstBound).map(([name, against]) => [name, shareOfBound(against)]),
    ),
    ...result,
  };
}
