import type { Quantiles } from "./job.js";

/** @throws RangeError when nothing was measured. */
export function quantiles(values: readonly number[]): Quantiles {
  if (values.length === 0) throw new RangeError("there are no quantiles of nothing; measure something first");
  const sorted = Float64Array.from(values).sort();
  const at = (share: number) => sorted[Math.ceil(share * sorted.length) - 1]!;
  return { p50: at(0.5), p99: at(0.99), max: at(1) };
}
