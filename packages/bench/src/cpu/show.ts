import { barPanel, linePanel, svgPicture } from "../svg.js";
import { printTable } from "../table.js";
import { BATCH, LONG_CONTEXT, type Measure } from "./measure.js";
import {
  type CpuResult,
  medianOf,
  packedToFile,
  peerMedianOf,
  ratioOf,
  readBoundOf,
  shareOfReading,
} from "./result.js";

export function showTable(result: CpuResult): void {
  console.log(result.machine);
  for (const [name, { model }] of Object.entries({ ...result.comparisons, ...result.alone }))
    console.log(`${name}: ${model}`);
  const packed = Object.entries(result.comparisons).map(
    ([name, comparison]) => `${name} ${packedToFile(comparison).toFixed(3)}×`,
  );
  console.log(`repacked weights, of the file's bytes: ${packed.join(", ")}`);
  const bound = `${(readBoundOf(result) / 1e9).toFixed(1)} GB/s`;
  console.log(`${result.threads} threads, medians of ${result.rounds}; reading memory alone: ${bound}`);
  console.log("");
  printTable(
    ["", "niwaki", "node-llama-cpp", "ratio", "of reading alone"],
    [...comparedRows(result), ...aloneRows(result)],
  );
  console.log("");
  console.log(rowsRemark(result));
}

/** The ratios as bars, and the time of a step against its rows as a line. */
export function chart(result: CpuResult): string {
  const bars = comparedMeasures(result)
    .filter(({ measure }) => measure !== "load")
    .map(({ name, ratio, ours, theirs }) => ({
      name,
      value: ratio,
      remark: `${ratio.toFixed(2)}×  (${ours.toFixed(1)} : ${theirs.toFixed(1)} tok/s)`,
    }));
  return svgPicture([
    barPanel(`Tokens a second, Niwaki : node-llama-cpp, ${result.threads} threads`, bars, 1),
    linePanel(
      `One step of ${result.rows.model}`,
      result.rows.seconds.map((seconds) => seconds * 1e3),
      "rows",
      "ms",
    ),
  ]);
}

function comparedMeasures(result: CpuResult) {
  const names: Record<Measure, string> = {
    decode: "decode",
    prefill: `prompt of ${result.promptTokens}`,
    batch: `${BATCH} together`,
    long: `decode at ${LONG_CONTEXT}`,
    longKv8: `decode at ${LONG_CONTEXT}, our KV in 8 bits`,
    load: "load",
  };
  return Object.entries(result.comparisons).flatMap(([shape, comparison]) =>
    (Object.keys(names) as Measure[]).flatMap((measure) => {
      const ours = medianOf(comparison.niwaki, measure);
      const theirs = peerMedianOf(comparison, measure);
      const ratio = ratioOf(comparison, measure);
      if (ours === undefined || theirs === undefined || ratio === undefined) return [];
      return [
        {
          name: `${shape} ${names[measure]}`,
          measure,
          ours,
          theirs,
          ratio,
          share: shareOfReading(comparison, measure),
        },
      ];
    }),
  );
}

function comparedRows(result: CpuResult): string[][] {
  return comparedMeasures(result).map(({ name, measure, ours, theirs, ratio, share }) => {
    const [unit, digits] = measure === "load" ? ["s", 2] : ["tok/s", 1];
    return [
      name,
      `${ours.toFixed(digits)} ${unit}`,
      `${theirs.toFixed(digits)} ${unit}`,
      `${ratio.toFixed(2)}×`,
      percent(share),
    ];
  });
}

function aloneRows({ alone }: CpuResult): string[][] {
  return Object.entries(alone).map(([name, measured]) => {
    const ours = medianOf(measured.niwaki, "decode")!;
    return [`${name} decode`, `${ours.toFixed(1)} tok/s`, "", "", percent(shareOfReading(measured, "decode"))];
  });
}

function rowsRemark({ rows }: CpuResult): string {
  const { overTrend, rise, fall } = rows.outliers;
  const ms = (index: number) => `${(rows.seconds[index]! * 1e3).toFixed(1)} ms`;
  return [
    `time of a step of 1 to ${rows.seconds.length} rows, ${rows.model}: ${ms(0)} to ${ms(rows.seconds.length - 1)}`,
    `  most over its neighbours' trend: ${overTrend.ratio.toFixed(2)}× at ${overTrend.index + 1} rows`,
    `  most over one row less: ${rise.ratio.toFixed(2)}× at ${rise.index + 1} rows`,
    `  most over one row more: ${fall.ratio.toFixed(2)}× at ${fall.index + 1} rows`,
  ].join("\n");
}

function percent(share: number | undefined): string {
  return share === undefined ? "" : `${(100 * share).toFixed(0)}%`;
}
