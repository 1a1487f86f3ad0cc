import { readFileSync } from "node:fs";
import { addon } from "./addon.js";
import { checkInteger } from "./check.js";
import { cudaLibrary, cudaNeeds } from "./cuda-library.js";
import { callNative, KernelError } from "./error.js";

/** A GPU that the driver shows. */
export interface Gpu {
  /** Its number, for `Device.open({ gpu })`. */
  index: number;
  name: string;
  /** Such as "9.0". */
  computeCapability: string;
  /** Bytes. */
  memory: number;
  /** Bytes that no process has taken. */
  freeMemory: number;
  /** Whether the kernels run on it. */
  usable: boolean;
}

export interface GpuReport {
  gpus: Gpu[];
  /** Why none can be used, and what to do; absent if one can. */
  reason?: string;
  /** The path of the shared object with the CUDA kernels; null where there is none. */
  library: string | null;
  /** The version of NVIDIA's driver, such as "580.95.05"; null where Linux shows none. */
  driver: string | null;
}

/** What a GPU reaches when it does nothing else. */
export interface GpuBounds {
  /** Read from its memory: what bounds decoding. */
  bytesPerSecond: number;
  /** Of its matrix units, float16 with float32 sums: what bounds prompts. */
  flopsPerSecond: number;
}

/** The GPUs of this machine, or the reason why there are none to use. A missing driver or package is no error. */
export function gpus(): GpuReport {
  const report: GpuReport = { gpus: [], library: null, driver: driverVersion() };
  try {
    report.library = cudaLibrary();
    report.gpus = listGpus(report.library);
  } catch (error) {
    if (!(error instanceof KernelError) || error.code === "addon-not-found") throw error;
    return { ...report, reason: report.library === null ? error.message : `${error.message}\n${cudaNeeds}` };
  }
  if (report.gpus.some(({ usable }) => usable)) return report;
  const found = report.gpus.map((gpu) => `${describeGpu(gpu)} cannot be used`);
  return { ...report, reason: `${found.join("; ") || "The driver shows no GPU."}\n${cudaNeeds}` };
}

/** Measures a GPU, the first usable one unless given; the event loop waits for about a second. Throws `unsupported`. */
export function measureGpu(gpu?: number): GpuBounds {
  if (gpu !== undefined) checkInteger("gpu", gpu, 0);
  const { library, index } = chooseGpu(gpu);
  return callNative(() => addon().cudaBounds(library, index));
}

/** The GPU of this number, or the first usable one, with the library that runs on it. Throws `unsupported`. */
export function chooseGpu(gpu: number | undefined): Gpu & { library: string } {
  const { gpus: found, library, reason } = gpus();
  if (library === null || reason !== undefined) throw new KernelError("unsupported", reason!);
  const chosen = found.find(({ index, usable }) => (gpu === undefined ? usable : index === gpu));
  if (chosen?.usable) return { ...chosen, library };
  const usable = found.filter((one) => one.usable).map(describeGpu);
  const problem = chosen === undefined ? `There is no GPU ${gpu}` : `${describeGpu(chosen)} cannot be used`;
  throw new KernelError("unsupported", `${problem}; usable: ${usable.join("; ")}.`);
}

function listGpus(library: string): Gpu[] {
  const found = callNative(() => addon().cudaGpus(library));
  return found.map(({ major, minor, ...gpu }, index) => ({ index, computeCapability: `${major}.${minor}`, ...gpu }));
}

function describeGpu({ index, name, computeCapability }: Gpu): string {
  return `GPU ${index} (${name}, compute capability ${computeCapability})`;
}

function driverVersion(): string | null {
  try {
    return readFileSync("/sys/module/nvidia/version", "utf8").trim();
  } catch {
    return null;
  }
}
