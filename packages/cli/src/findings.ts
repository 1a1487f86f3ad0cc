import { availableParallelism, cpus } from "node:os";
import { cpuTiers, type GpuReport, gpus, KernelError } from "@niwaki/kernels-native";
import { size } from "./units.js";

/** What models can run on here. */
export interface Findings {
  readonly node: string;
  readonly platform: string;
  readonly cpu: { readonly name: string; readonly cores: number; readonly kernels: readonly string[] };
  /** Why no kernels could be loaded. */
  readonly problem?: string;
  /** Not looked for where no kernels could be loaded. */
  readonly cuda?: GpuReport;
  /** Variables of the environment that choose for all. */
  readonly environment: Readonly<Record<string, string>>;
}

const VARIABLES = ["NIWAKI_BACKEND", "NIWAKI_TIER", "NIWAKI_CUDA_LIBRARY"];

export function findings(): Findings {
  const { version, platform, arch, env } = process;
  const name = cpus()[0]?.model.trim() || "unknown processor";
  const set = VARIABLES.flatMap((variable) => (env[variable] ? [[variable, env[variable]]] : []));
  const found = {
    node: version,
    platform: `${platform}-${arch}`,
    cpu: { name, cores: availableParallelism(), kernels: [] },
    environment: Object.fromEntries(set) as Record<string, string>,
  };
  try {
    return { ...found, cpu: { ...found.cpu, kernels: cpuTiers() }, cuda: gpus() };
  } catch (error) {
    if (error instanceof KernelError) return { ...found, problem: error.message };
    throw error;
  }
}

/** The findings for people. */
export function describeFindings({ node, platform, cpu, problem, cuda, environment }: Findings): string {
  const lines = [
    `Node.js ${node}, ${platform}`,
    "",
    "CPU",
    `  processor  ${cpu.name}, ${cpu.cores} ${cpu.cores === 1 ? "core" : "cores"}`,
  ];
  if (problem === undefined) lines.push(`  kernels    ${cpu.kernels.join(", ")}`, "  usable     yes");
  else lines.push("  usable     no", ...indented(problem));
  if (cuda !== undefined) {
    lines.push(
      "",
      "CUDA",
      `  kernels    ${cuda.library ?? "none"}`,
      `  driver     ${cuda.driver ?? "none that Linux shows"}`,
      ...cuda.gpus.map(
        ({ index, name, memory, freeMemory, computeCapability, usable }) =>
          `  GPU ${String(index).padEnd(6)} ${name}, ${size(memory)} (${size(freeMemory)} free), ` +
          `compute capability ${computeCapability}: ${usable ? "usable" : "not usable"}`,
      ),
    );
    if (cuda.reason === undefined) lines.push("  usable     yes, with --backend cuda or auto");
    else lines.push("  usable     no", ...indented(cuda.reason));
  }
  const variables = Object.entries(environment).map(([name, value]) => `  ${name}=${value}`);
  if (variables.length > 0) lines.push("", "environment", ...variables);
  return lines.join("\n");
}

function indented(text: string): string[] {
  return text.split("\n").map((line) => `    ${line}`);
}
