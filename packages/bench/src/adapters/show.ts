import { median } from "../statistics.js";
import { printTable } from "../table.js";
import { type AdaptersResult, judge } from "./result.js";

export function show(result: AdaptersResult): void {
  const { registered, large, slots } = result.workload.swap;
  console.log(result.machine);
  console.log(`${result.model}, ${result.threads} threads; adapters of rank 16 on all seven projections`);
  console.log("");
  printTable(
    ["", "", "", "ratio", "target", ""],
    judge(result).map(({ name, of, to, value, target, met }) => [
      name,
      `${of.toFixed(1)} ms`,
      `${to.toFixed(1)} ms`,
      `${value.toFixed(3)}×`,
      `≤ ${target}`,
      met ? "met" : "missed",
    ]),
  );
  console.log("");
  console.log(
    `${registered} adapters registered, ${slots} slots: ${large} are loaded into slots in turn, ${result.workload.adapters} ` +
      `files under ${large} names, each with memory of its own; the other ${registered - large} have rank 1 on q_proj`,
  );
  console.log(`from a file into host memory: ${median(result.swap.registering).toFixed(0)} ms`);
}
