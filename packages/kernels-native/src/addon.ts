import { createRequire } from "node:module";
import { KernelError } from "./error.js";

declare const kind: unique symbol;
/** What JavaScript holds of a native object. */
export type Handle<Kind extends string> = { readonly [kind]: Kind };
export type AnyHandle = Handle<string>;

type Callback<T> = (error: Error | null, result: T) => void;
/** A job that was started; `cancelJob` takes it. */
export type JobId = number;

export interface NativeDevice {
  handle: Handle<"Device">;
  threads: number;
  tier: string;
}

interface NativeGpu {
  name: string;
  major: number;
  minor: number;
  memory: number;
  freeMemory: number;
  usable: boolean;
}

interface NativeSource {
  name: string;
  type: number;
  rows: number;
  data: Uint8Array | { file: Handle<"MappedFile">; offset: number };
}

export interface NativeAdapterSlots {
  handle: Handle<"AdapterSlots">;
  byteLength: number;
  /** Of each target. */
  shapes: { rows: number; columns: number }[];
}

interface NativeAdapterMatrix {
  type: number;
  byteLength: number;
  data: Uint8Array | { file: Handle<"MappedFile">; offset: number };
}

export interface NativeAdapterTarget {
  tensor: string;
  rank: number;
  scale: number;
  a: NativeAdapterMatrix;
  b: NativeAdapterMatrix;
  rowScale: Float32Array | null;
}

interface NativePlanSpec {
  maxRows: number;
  maxOutputs: number;
  vocabulary: number;
  blockSize: number;
  buffers: { width: number; perOutput: boolean }[];
  ops: object[];
  logits: number;
}

/** The functions of native/exports.h. Arguments are checked before they get here. */
export interface Addon {
  tiers(): string[];
  openDevice(threads: number, tier: string): NativeDevice;
  cudaGpus(library: string): NativeGpu[];
  openCudaDevice(library: string, gpu: number): NativeDevice;
  cudaBounds(library: string, gpu: number): { bytesPerSecond: number; flopsPerSecond: number };
  openFile(path: string): { handle: Handle<"MappedFile">; byteLength: number };
  loadMatrix(
    device: Handle<"Device">,
    columns: number,
    sources: NativeSource[],
    callback: Callback<{ handle: Handle<"Matrix">; byteLength: number }>,
  ): JobId;
  loadVector(source: NativeSource, columns: number): Handle<"Vector">;
  createKvCache(
    device: Handle<"Device">,
    shape: {
      layers: number;
      kvHeads: number;
      headDim: number;
      blockSize: number;
      blocks: number;
      type: number;
    },
  ): { handle: Handle<"KvCache">; byteLength: number; blockByteLength: number };
  copyKvBlock(cache: Handle<"KvCache">, from: number, to: number): void;
  readKvBlock(cache: Handle<"KvCache">, block: number): Uint8Array;
  writeKvBlock(cache: Handle<"KvCache">, block: number, bytes: Uint8Array): void;
  compilePlan(device: Handle<"Device">, spec: NativePlanSpec): { handle: Handle<"Plan">; byteLength: number };
  createAdapterSlots(
    device: Handle<"Device">,
    plan: Handle<"Plan">,
    slots: number,
    maxRank: number,
    type: number,
    targets: string[],
    callback: Callback<NativeAdapterSlots>,
  ): JobId;
  loadAdapter(
    device: Handle<"Device">,
    slots: Handle<"AdapterSlots">,
    slot: number,
    targets: NativeAdapterTarget[],
    callback: Callback<void>,
  ): JobId;
  adapterRowNorms(
    device: Handle<"Device">,
    slots: Handle<"AdapterSlots">,
    target: NativeAdapterTarget,
    callback: Callback<Float32Array>,
  ): JobId;
  /** The layout of the arrays is described in native/step.cpp. */
  runPlan(
    device: Handle<"Device">,
    plan: Handle<"Plan">,
    tokens: Int32Array,
    sequences: Int32Array,
    outputs: Int32Array,
    samples: Float64Array,
    adapters: Float64Array,
    adapterSlots: Handle<"AdapterSlots"> | null,
    logits: boolean,
    following: number,
    samplesWithin: number,
    onSamples: ((part: [samples: Float64Array, waited: number]) => void) | null,
    callback: Callback<[samples: Float64Array, logits: Float32Array | null, waited: number]>,
  ): JobId;
  compileTraining(
    device: Handle<"Device">,
    spec: object,
  ): { handle: Handle<"TrainingPlan">; byteLength: number; parameters: number };
  accumulateGradients(
    device: Handle<"Device">,
    plan: Handle<"TrainingPlan">,
    tokens: Int32Array,
    sequences: Int32Array,
    outputs: Int32Array,
    targets: Int32Array,
    weights: Float32Array,
    callback: Callback<number>,
  ): JobId;
  updateParameters(
    device: Handle<"Device">,
    plan: Handle<"TrainingPlan">,
    options: object,
    callback: Callback<number>,
  ): JobId;
  readTraining(
    device: Handle<"Device">,
    plan: Handle<"TrainingPlan">,
    state: number,
    callback: Callback<Float32Array>,
  ): JobId;
  writeTraining(
    device: Handle<"Device">,
    plan: Handle<"TrainingPlan">,
    state: number,
    values: Float32Array,
    callback: Callback<number>,
  ): JobId;
  cancelJob(job: JobId): void;
  finishJob(job: JobId): void;
  dispose(handle: AnyHandle): void;
}

const require = createRequire(import.meta.url);
let loaded: Addon | undefined;

/** The native code, loaded when it is first needed. Throws `addon-not-found`. */
export function addon(): Addon {
  loaded ??= load(`${process.platform}-${process.arch}`);
  return loaded;
}

/** Tries a build of this checkout, then the package of the platform. */
function load(platform: string): Addon {
  const tried: string[] = [];
  const attempt = (name: string, load: () => unknown) => {
    try {
      return load() as Addon;
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      tried.push(`  ${name}: ${code === "MODULE_NOT_FOUND" ? "not there" : message.split("\n")[0]}`);
      return undefined;
    }
  };

  const local = attempt("build/Release/niwaki.node (a build of this checkout)", () =>
    require("../build/Release/niwaki.node"),
  );
  if (local) return local;

  // Literal names, so that bundlers see what to ship.
  switch (platform) {
    case "linux-x64": {
      const name = "@niwaki/kernels-native-linux-x64-gnu";
      const packaged = attempt(name, () => require("@niwaki/kernels-native-linux-x64-gnu"));
      if (packaged) return packaged;
      break;
    }
    default:
      tried.push(`  no package has a binary for ${platform}`);
  }
  throw new KernelError(
    "addon-not-found",
    `The native code of @niwaki/kernels-native could not be loaded on ${platform}. Tried:\n${tried.join("\n")}\n` +
      "On Linux x64 with glibc, install without --omit=optional (or --no-optional). On another system, build it from a " +
      "checkout of the repository with a C++20 compiler and cmake: pnpm -C packages/kernels-native build:native",
  );
}
