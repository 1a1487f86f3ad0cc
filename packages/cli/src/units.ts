/** Bytes for people: "1.15 GB". */
export function size(bytes: number): string {
  for (const [unit, factor] of [
    ["GB", 1e9],
    ["MB", 1e6],
    ["kB", 1e3],
  ] as const) {
    if (bytes >= factor) return `${(bytes / factor).toFixed(2)} ${unit}`;
  }
  return `${bytes} B`;
}
