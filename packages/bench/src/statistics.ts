export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

/** The values of a row of measurements that stand out most; `index` counts from 0. */
export interface Outliers {
  /** A value over the trend of its neighbours, up to two on either side. The first and the last have none. */
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
    overTrend: largest(values, (index) => (index === 0 || index === last ? 0 : values[index]! / trend(values, index))),
    rise: largest(values, (index) => (index === 0 ? 0 : values[index]! / values[index - 1]!)),
    fall: largest(values, (index) => (index === last ? 0 : values[index]! / values[index + 1]!)),
  };
}

function largest(values: readonly number[], ratioAt: (index: number) => number) {
  return values
    .map((_, index) => ({ index, ratio: ratioAt(index) }))
    .reduce((best, next) => (next.ratio > best.ratio ? next : best));
}

/** The line through as many neighbours on either side, two at most, is their mean in the middle. */
function trend(values: readonly number[], index: number): number {
  const reach = Math.min(2, index, values.length - 1 - index);
  let sum = 0;
  for (let offset = 1; offset <= reach; offset++) sum += values[index - offset]! + values[index + offset]!;
  return sum / (2 * reach);
}
