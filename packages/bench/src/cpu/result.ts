import { median, type Outliers } from "../statistics.js";
import type { Measure, Sample } from "./measure.js";

/** What both engines did with one model. */
export interface Comparison {
  readonly model: string;
  /** Bytes of weights that a decoded token reads. */
  readonly decodedBytes: number;
  readonly fileBytes: number;
  readonly niwaki: readonly Sample[];
  readonly nodeLlamaCpp: readonly Sample[];
}

/** Decoding of a model that only Niwaki runs. */
export interface Alone {
  readonly model: string;
  readonly decodedBytes: number;
  readonly tokensPerSecond: readonly number[];
}

export interface CpuResult {
  readonly machine: string;
  readonly threads: number;
  readonly rounds: number;
  /** Tokens of the long prompt. */
  readonly promptTokens: number;
  /** Bytes a second, one for each round. */
  readonly readBounds: readonly number[];
  readonly comparisons: Readonly<Record<string, Comparison>>;
  readonly alone: Readonly<Record<string, Alone>>;
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

/** The share of the bound at which a decoding engine reads its weights. */
export function shareOfBound(result: CpuResult, tokensPerSecond: number, decodedBytes: number): number {
  return (tokensPerSecond * decodedBytes) / median(result.readBounds);
}

const MEASURES = ["decode", "prefill", "batch", "long", "longKv8", "load"] as const satisfies Measure[];

/** One object for programs: ratios by shape, the medians behind them, and all samples. */
export function summary(result: CpuResult) {
  const each = <Value>(of: (comparison: Comparison) => Value) =>
    Object.fromEntries(Object.entries(result.comparisons).map(([name, comparison]) => [name, of(comparison)]));
  const measured = (of: (measure: Measure) => number | undefined) =>
    Object.fromEntries(MEASURES.map((measure) => [measure, of(measure)]));
  const share = ({ tokensPerSecond, decodedBytes }: { tokensPerSecond: number; decodedBytes: number }) =>
    shareOfBound(result, tokensPerSecond, decodedBytes);
  return {
    ratios: each((comparison) => measured((measure) => ratioOf(comparison, measure))),
    medians: each(({ niwaki, nodeLlamaCpp }) => ({
      niwaki: measured((measure) => medianOf(niwaki, measure)),
      nodeLlamaCpp: measured((measure) => medianOf(nodeLlamaCpp, measure)),
    })),
    packedToFile: each(packedToFile),
    readBound: median(result.readBounds),
    decodeToBound: {
      ...each(({ niwaki, decodedBytes }) => share({ tokensPerSecond: medianOf(niwaki, "decode")!, decodedBytes })),
      ...Object.fromEntries(
        Object.entries(result.alone).map(([name, { tokensPerSecond, decodedBytes }]) => [
          name,
          share({ tokensPerSecond: median(tokensPerSecond), decodedBytes }),
        ]),
      ),
    },
    ...result,
  };
}
