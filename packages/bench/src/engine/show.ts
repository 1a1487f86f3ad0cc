import { printTable } from "../table.js";
import type {
  ArrivalReport,
  BlocksReport,
  PrefixReport,
  Quantiles,
  ScheduleReport,
  SharedReport,
  StepsReport,
} from "./job.js";
import type { Workload } from "./workload.js";

/** What was measured; parts that were not asked for are absent. */
export interface EngineResult {
  readonly machine: string;
  readonly threads: number;
  readonly model: string;
  readonly workload: Workload;
  blocks?: BlocksReport;
  schedule?: ScheduleReport;
  steps?: StepsReport;
  shared?: Readonly<Record<"niwaki" | "nodeLlamaCpp" | "nodeLlamaCppWithStates", SharedReport>>;
  prefix?: PrefixReport;
  arrival?: ArrivalReport;
}

interface Judged {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  /** At most, or at least. */
  readonly target: readonly ["≤" | "≥", number];
  readonly met: boolean;
}

/** Each measured value that has a target; ratios first. */
export function judge({ blocks, schedule, steps, shared, prefix, arrival }: EngineResult): Judged[] {
  const judged: Judged[] = [];
  const add = (name: string, value: number, unit: string, sense: "≤" | "≥", limit: number) => {
    judged.push({ name, value, unit, target: [sense, limit], met: sense === "≤" ? value <= limit : value >= limit });
  };
  if (shared) {
    const { niwaki, nodeLlamaCpp, nodeLlamaCppWithStates } = shared;
    add("shared prefix: node-llama-cpp / niwaki", nodeLlamaCpp.seconds / niwaki.seconds, "×", "≥", 25);
    add(
      "shared prefix: node-llama-cpp with states / niwaki",
      nodeLlamaCppWithStates.seconds / niwaki.seconds,
      "×",
      "≥",
      6,
    );
  }
  if (prefix) add("first token: cold / cached prefix", prefix.cold / prefix.cached, "×", "≥", 20);
  if (arrival)
    add("between tokens beside a prompt: p99 / target", arrival.betweenTokens.p99 / arrival.target, "×", "≤", 1.5);
  for (const [name, cost] of Object.entries(blocks ?? {})) {
    add(`block operation ${name}`, cost.nanoseconds, "ns", "≤", 200);
    // Less than a byte in ten operations is what the measurement itself leaves.
    add(`block operation ${name}, garbage`, cost.garbageBytes, "bytes", "≤", 0.1);
  }
  if (schedule) {
    add("schedule() of 256 decode rows, p99", schedule.decoding.p99, "µs", "≤", 50);
    add("schedule() of 256 decode rows and prompts, p99", schedule.withPrompts.p99, "µs", "≤", 50);
  }
  if (steps) add("overhead of a step, 2 layers, median", steps.between.p50, "ms", "≤", 0.3);
  if (shared?.niwaki.steps)
    add("overhead of a step, all layers, median", shared.niwaki.steps.between.p50, "ms", "≤", 0.3);
  return judged;
}

export function show(result: EngineResult): void {
  const { schedule, steps, shared, prefix, arrival, workload } = result;
  console.log(result.machine);
  console.log(`${result.model}, ${result.threads} threads`);
  printTable(
    ["", "measured", "target", ""],
    judge(result).map(({ name, value, unit, target: [sense, limit], met }) => [
      name,
      `${figure(value)} ${unit}`,
      `${sense} ${limit}`,
      met ? "met" : "missed",
    ]),
  );
  const distributions: [string, Quantiles | undefined, string][] = [
    ["schedule(), 256 decode rows", schedule?.decoding, "µs"],
    ["schedule(), prompts beside and waiting", schedule?.withPrompts, "µs"],
    [`2 layers, ${workload.steps.requests} requests: kernels`, steps?.kernel, "ms"],
    ["  planning and handing out", steps?.overhead, "ms"],
    ["  from kernels to kernels", steps?.between, "ms"],
    [`all layers, ${workload.shared.requests} requests: kernels`, shared?.niwaki.steps?.kernel, "ms"],
    ["  planning and handing out", shared?.niwaki.steps?.overhead, "ms"],
    ["  from kernels to kernels", shared?.niwaki.steps?.between, "ms"],
    [`between tokens of ${workload.arrival.chats} chats beside a prompt`, arrival?.betweenTokens, "ms"],
  ];
  const rows = distributions.flatMap(([name, values, unit]) =>
    values ? [[name, ...[values.p50, values.p99, values.max].map((value) => `${figure(value)} ${unit}`)]] : [],
  );
  if (rows.length > 0) {
    console.log();
    printTable(["", "p50", "p99", "max"], rows);
  }
  console.log();
  if (shared) {
    const { requests, sharedTokens, ownTokens, answerTokens } = workload.shared;
    console.log(
      `${requests} requests of ${sharedTokens} shared and ${ownTokens} own tokens, ${answerTokens} generated: ` +
        `niwaki ${figure(shared.niwaki.seconds)} s, node-llama-cpp ${figure(shared.nodeLlamaCpp.seconds)} s, ` +
        `with the prefix saved once and loaded ${figure(shared.nodeLlamaCppWithStates.seconds)} s`,
    );
  }
  if (prefix) {
    const { prefixTokens, ownTokens } = workload.prefix;
    console.log(
      `first token after ${prefixTokens} + ${ownTokens} tokens: cold ${figure(prefix.cold)} s, ` +
        `with the ${prefixTokens} cached ${figure(prefix.cached)} s`,
    );
  }
  if (arrival) {
    console.log(
      `prompt of ${workload.arrival.promptTokens} tokens beside ${workload.arrival.chats} chats: first token after ` +
        `${figure(arrival.promptSeconds)} s, ${arrival.steps} steps; target ${figure(arrival.target)} ms, ` +
        `${workload.arrival.targetSteps} × a decode step of ${figure(arrival.decodeStep)} ms`,
    );
  }
}

/** Three significant digits. */
function figure(value: number): string {
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value >= 1 ? value.toFixed(2) : value.toFixed(3);
}
