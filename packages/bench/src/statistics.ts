export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** The values of a row of measurements that stand out most; `index` counts from 0. */
export interface Outliers {
  /** A value over the trend of its neighbours: the line that fits the two on either side best. */
  readonly overTrend: { readonly index: number; readonly ratio: number };
  /** A value over the one before it. */
  readonly rise: { readonly index: number; readonly ratio: number };
  /** A value over the one after it; a ratio under 1 where all rise. */
  readonly fall: { readonly index: number; readonly ratio: number };
}

/** @throws RangeError for fewer than three values. */
export function outliers(values: readonly number[]): Outliers {
  if (values.length < 3) throw new RangeError(`a trend takes at least three values, got ${values.length}`);
  const last = values.length - 1;
  return {
    overTrend: largest(values, (index) => values[index]! / trend(values, index)),
    rise: largest(values, (index) => (index === 0 ? 0 : values[index]! / values[index - 1]!)),
    fall: largest(values, (index) => (index === last ? 0 : values[index]! / values[index + 1]!)),
  };
}

function largest(values: readonly number[], ratioAt: (index: number) => number) {
  return values
    .map((_, index) => ({ index, ratio: ratioAt(index) }))
    .reduce((best, next) => (next.ratio > best.ratio ? next : best));
}

/** Where the least-squares line through up to two neighbours on either side passes `index`. */
function trend(values: readonly number[], index: number): number {
  const neighbours = [-2, -1, 1, 2].map((offset) => index + offset).filter((i) => i >= 0 && i < values.length);
  const meanX = neighbours.reduce((sum, x) => sum + x, 0) / neighbours.length;
  const meanY = neighbours.reduce((sum, x) => sum + values[x]!, 0) / neighbours.length;
  const slope =
    neighbours.reduce((sum, x) => sum + (x - meanX) * (values[x]! - meanY), 0) /
    neighbours.reduce((sum, x) => sum + (x - meanX) ** 2, 0);
  return meanY + slope * (index - meanX);
}
