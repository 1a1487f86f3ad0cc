import { cpus } from "node:os";
import { AdapterSlots, type AdapterSlotsOptions, checkSlotsOptions } from "./adapter-slots.js";
import { addon, type Handle, type NativeAdapterSlots, type NativeDevice } from "./addon.js";
import type { Buffer } from "./buffer.js";
import { checkInstance, checkInteger, checkObject, checkString, invalid } from "./check.js";
import { Encoder, type PlanLimits } from "./encoder.js";
import { callNative, KernelError } from "./error.js";
import { chooseGpu, gpus } from "./gpu.js";
import { Jobs } from "./jobs.js";
import { KvCache, type KvShape } from "./kv-cache.js";
import { Matrix } from "./matrix.js";
import { Owner } from "./owner.js";
import { Plan } from "./plan.js";
import { checkSource, type TensorSource } from "./tensor-source.js";
import { TrainingEncoder, type TrainingLimits } from "./training-encoder.js";
import { TrainingPlan } from "./training-plan.js";
import { Vector } from "./vector.js";

/**
 * The sets of kernels (tiers) that this machine can run, best first: `["avx512vbmi", "avx512", "avx2", "portable"]`, or on Arm
 * `["neon", "portable"]`. Their results are equal.
 */
export function cpuTiers(): string[] {
  return callNative(() => addon().tiers());
}

/** What a device computes with. */
export type Backend = "cpu" | "cuda";

export interface DeviceOptions {
  /**
   * "cpu"; "cuda", an NVIDIA GPU; or "auto", a GPU if there is one that the kernels run on, and else the CPU. "cpu", or what
   * the environment variable NIWAKI_BACKEND names, unless given.
   */
  backend?: Backend | "auto";
  /** Which of `gpus()`; the first that is usable, unless given. Not for "cpu". */
  gpu?: number;
  /** Threads that compute; one per core that this process may use, unless given. Of a CPU: not for "cuda". */
  threads?: number;
  /**
   * One of `cpuTiers()`; the best, or the one that the environment variable NIWAKI_TIER names, unless given. Of a CPU: not
   * for "cuda".
   */
  tier?: string;
}

/**
 * A processor: a CPU with threads of its own, or a GPU. What is started on it runs in order, off the event loop; a process
 * with nothing left to do but an idle device ends.
 */
export class Device implements AsyncDisposable {
  readonly backend: Backend;
  /** Threads of a CPU, multiprocessors of a GPU. */
  readonly threads: number;
  /** One of `cpuTiers()`; "cuda" on a GPU. */
  readonly tier: string;
  readonly #gpuName: string | undefined;
  readonly #owner: Owner<Handle<"Device">>;
  readonly #jobs = new Jobs();
  #disposal: Promise<void> | undefined;

  private constructor(native: NativeDevice, gpuName?: string) {
    this.#owner = new Owner("Device", native.handle);
    this.backend = gpuName === undefined ? "cpu" : "cuda";
    this.threads = native.threads;
    this.tier = native.tier;
    this.#gpuName = gpuName;
  }

  /**
   * Throws `unsupported` for a tier or a GPU that this machine does not have, and for "cuda" where it cannot run, with the
   * reason; `out-of-memory`.
   */
  static open(options: DeviceOptions = {}): Device {
    const { gpu, threads, tier } = checkObject("options", options);
    const backend = checkBackend(options.backend);
    if (gpu !== undefined) checkInteger("options.gpu", gpu, 0);
    if (threads !== undefined) checkInteger("options.threads", threads, 1, 256);
    if (tier !== undefined) checkString("options.tier", tier);
    if (backend === "cuda") {
      const allowed = 'it is of a CPU; leave it out with the backend "cuda"';
      if (threads !== undefined) throw invalid("options.threads", threads, allowed);
      if (tier !== undefined) throw invalid("options.tier", tier, allowed);
    }
    if (backend === "cpu" && gpu !== undefined) {
      throw invalid("options.gpu", gpu, 'the backend is "cpu"; choose "cuda" or "auto"');
    }
    if (backend === "cuda" || (backend === "auto" && isUsable(gpu))) {
      const { library, index, name } = chooseGpu(gpu);
      return new Device(
        callNative(() => addon().openCudaDevice(library, index)),
        name,
      );
    }
    return new Device(callNative(() => addon().openDevice(threads ?? 0, tier ?? "")));
  }

  /** Of the processor, such as "NVIDIA H200". */
  get name(): string {
    return this.#gpuName ?? (cpus()[0]?.model.trim() || `${process.arch} processor`);
  }

  /**
   * Packs one tensor, or several of the same columns stacked by rows, into a matrix, off the event loop. Ranges of mapped
   * files are released from memory afterwards; bytes are copied at the call. Rejects with `invalid-argument`,
   * `non-finite` (a weight is NaN or infinite: the message names the tensor), `io` (the file has shrunk).
   */
  async loadMatrix(sources: TensorSource | TensorSource[]): Promise<Matrix> {
    const device = this.#owner.handle;
    const list = Array.isArray(sources) ? sources : [sources];
    if (list.length === 0) throw invalid("sources", list, "it must have a tensor in it");
    const checked = list.map((source, i) => checkSource(Array.isArray(sources) ? `sources[${i}]` : "sources", source));
    const { columns, name } = list[0]!;
    list.forEach((source, i) => {
      if (source.columns !== columns) {
        throw invalid(
          `sources[${i}].columns`,
          source.columns,
          `the columns of ${name}, first in the stack, are ${columns}`,
        );
      }
    });
    const rows = list.reduce((sum, source) => sum + source.rows, 0);
    checkInteger("the rows of all sources", rows, 1);
    const native = await this.#jobs.start<{ handle: Handle<"Matrix">; byteLength: number }>((callback) =>
      addon().loadMatrix(device, columns, checked, callback),
    );
    return new Matrix(rows, columns, native);
  }

  /** Reads the weights of a norm: one row of type F32. Throws `invalid-argument`, `non-finite`, `io`. */
  loadVector(source: TensorSource): Vector {
    void this.#owner.handle;
    const checked = checkSource("source", source);
    if (source.type !== "F32") throw invalid("source.type", source.type, "a vector is of type F32");
    if (source.rows !== 1) throw invalid("source.rows", source.rows, "a vector has one row");
    return new Vector(
      source.columns,
      callNative(() => addon().loadVector(checked, source.columns)),
    );
  }

  /** Reserves the pages of every layer. Throws `invalid-argument`, `out-of-memory`. */
  createKvCache(shape: KvShape): KvCache {
    return new KvCache(this.#owner.handle, shape);
  }

  /**
   * Compiles what `build` writes down into a plan. `build` returns the buffer of the logits: per output row, as wide as the
   * vocabulary. Throws `invalid-argument`, `out-of-memory`.
   */
  encode(limits: PlanLimits, build: (encoder: Encoder) => Buffer): Plan {
    const device = this.#owner.handle;
    const encoder = new Encoder(checkObject("limits", limits));
    const spec = encoder.finish(build(encoder));
    const native = callNative(() => addon().compilePlan(device, spec));
    return new Plan(spec, this.#owner, this.#jobs, native);
  }

  /**
   * Makes room for the adapters that steps of a plan may use at one time, and takes its memory from the system at once.
   * Rejects with `invalid-argument` (a target that the plan does not multiply by), `out-of-memory`.
   */
  async createAdapterSlots(plan: Plan, options: AdapterSlotsOptions): Promise<AdapterSlots> {
    const device = this.#owner.handle;
    checkInstance("plan", plan, Plan);
    const { slots, maxRank, type, targets } = checkSlotsOptions(options);
    const native = await this.#jobs.start<NativeAdapterSlots>((callback) =>
      addon().createAdapterSlots(device, plan.handle, slots, maxRank, type, targets, callback),
    );
    return new AdapterSlots(options, this.#owner, this.#jobs, native);
  }

  /**
   * Compiles the forward pass that `build` writes down, and its gradients, into a plan that trains low-rank adapters.
   * `build` returns the buffer of the logits. Throws `invalid-argument`, `out-of-memory`, and `unsupported` on a GPU.
   */
  encodeTraining(limits: TrainingLimits, build: (encoder: TrainingEncoder) => Buffer): TrainingPlan {
    const device = this.#owner.handle;
    if (this.backend !== "cpu") {
      throw new KernelError("unsupported", 'Training runs on the CPU only: open a device with the backend "cpu".');
    }
    const encoder = new TrainingEncoder(checkObject("limits", limits));
    const spec = encoder.finish(build(encoder));
    const native = callNative(() => addon().compileTraining(device, spec));
    return new TrainingPlan(this.#owner, this.#jobs, native);
  }

  /**
   * Cancels what is running or waiting, waits until it has ended, and ends the threads. Its plans cannot run any more;
   * matrices and caches live on until they are disposed.
   */
  dispose(): Promise<void> {
    this.#owner.dispose(); // jobs in flight have their own share of it
    this.#disposal ??= this.#jobs.cancelAll();
    return this.#disposal;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }
}

function checkBackend(given: DeviceOptions["backend"]): Backend | "auto" {
  const [argument, backend] =
    given === undefined
      ? ["the environment variable NIWAKI_BACKEND", process.env.NIWAKI_BACKEND || "cpu"]
      : ["options.backend", given];
  if (backend === "cpu" || backend === "cuda" || backend === "auto") return backend;
  throw invalid(argument, backend, 'it must be "cpu", "cuda" or "auto"');
}

/** Whether the GPU of this number is usable, or any. */
function isUsable(gpu: number | undefined): boolean {
  return gpus().gpus.some(({ index, usable }) => usable && (gpu === undefined || index === gpu));
}
