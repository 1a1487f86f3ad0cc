import { addon, type Handle, type NativeAdapterSlots, type NativeAdapterTarget } from "./addon.js";
import { checkInstance, checkInteger, checkNumber, checkObject, checkString, invalid } from "./check.js";
import type { Jobs } from "./jobs.js";
import { MappedFile } from "./mapped-file.js";
import { Owner } from "./owner.js";

/** How adapters lie in their slots. `i8`: 8-bit integers with a scale for each rank. */
export type AdapterType = "f16" | "i8";

const adapterTypes: Readonly<Record<AdapterType, number>> = { f16: 0, i8: 1 };

export interface AdapterSlotsOptions {
  /** Adapters that can be used at one time. */
  slots: number;
  /** The highest rank that fits; memory is taken for it. */
  maxRank: number;
  type: AdapterType;
  /** Names of the tensors that adapters may touch, as they were named to `loadMatrix`: `blk.3.attn_q.weight`. */
  targets: string[];
}

/** A matrix of an adapter as it lies in a file, row by row. */
export interface AdapterMatrix {
  type: "F32" | "F16" | "BF16";
  /** An array is not copied: it must be neither changed nor transferred before the call that takes it has settled. */
  data: Uint8Array | { file: MappedFile; offset: number };
}

/**
 * What an adapter adds to one tensor W: y = W x + scale · B A x (Hu et al., 2021). With `rowScale` f, one for each row of W:
 * y = f (W x + scale · B A x), which is DoRA (Liu et al., 2024) for f = magnitude / `rowNorms`.
 */
export interface AdapterTarget {
  tensor: string;
  rank: number;
  scale: number;
  /** [rank, columns of W] */
  a: AdapterMatrix;
  /** [rows of W, rank] */
  b: AdapterMatrix;
  rowScale?: Float32Array;
}

const matrixTypes = { F32: { id: 0, bytes: 4 }, F16: { id: 1, bytes: 2 }, BF16: { id: 2, bytes: 2 } } as const;

/**
 * Memory for the adapters that steps of one plan may use; made by `Device.createAdapterSlots`. A slot holds one adapter or
 * none. Loads run between steps, in the order of the calls.
 */
export class AdapterSlots implements Disposable {
  readonly slots: number;
  readonly maxRank: number;
  readonly type: AdapterType;
  /** Bytes of all slots. */
  readonly byteLength: number;
  readonly #shapes: ReadonlyMap<string, { rows: number; columns: number }>;
  readonly #device: Owner<Handle<"Device">>;
  readonly #jobs: Jobs;
  readonly #owner: Owner<Handle<"AdapterSlots">>;

  /** @internal */
  constructor(options: AdapterSlotsOptions, device: Owner<Handle<"Device">>, jobs: Jobs, native: NativeAdapterSlots) {
    this.slots = options.slots;
    this.maxRank = options.maxRank;
    this.type = options.type;
    this.byteLength = native.byteLength;
    this.#shapes = new Map(native.shapes.map((shape, i) => [options.targets[i]!, shape]));
    this.#device = device;
    this.#jobs = jobs;
    this.#owner = new Owner("AdapterSlots", native.handle);
  }

  /**
   * Puts an adapter into a slot, in place of what it held. Rejects with `invalid-argument`, or with `non-finite` naming the
   * tensor (a value that is NaN, infinite or, in slots of `f16`, beyond 65504); the slot is then as it was.
   */
  async load(slot: number, adapter: AdapterTarget[]): Promise<void> {
    if (!Array.isArray(adapter) || adapter.length === 0) {
      throw invalid("adapter", adapter, "it must be an array of targets; clear() empties a slot");
    }
    await this.#load(
      slot,
      adapter.map((target, i) => this.#check(`adapter[${i}]`, target)),
    );
  }

  /** Empties a slot. A step that names it then fails. */
  async clear(slot: number): Promise<void> {
    await this.#load(slot, []);
  }

  /** ‖W + scale · B A‖ of every row of the target's tensor W: what DoRA divides its magnitudes by. */
  async rowNorms(target: Omit<AdapterTarget, "rowScale">): Promise<Float32Array> {
    const { tensor, rank, scale, a, b } = checkObject("target", target);
    const checked = this.#check("target", { tensor, rank, scale, a, b });
    const { handle } = this.#owner;
    const device = this.#device.handle;
    return this.#jobs.start<Float32Array>((callback) => addon().adapterRowNorms(device, handle, checked, callback));
  }

  async #load(slot: number, adapter: NativeAdapterTarget[]): Promise<void> {
    const { handle } = this.#owner;
    const device = this.#device.handle;
    checkInteger("slot", slot, 0, this.slots - 1);
    await this.#jobs.start<void>((callback) => addon().loadAdapter(device, handle, slot, adapter, callback));
  }

  #check(argument: string, target: AdapterTarget): NativeAdapterTarget {
    const { tensor, rank, scale, a, b, rowScale } = checkObject(argument, target);
    const shape = this.#shapes.get(checkString(`${argument}.tensor`, tensor));
    if (shape === undefined) throw invalid(`${argument}.tensor`, tensor, "it must be one of the targets of the slots");
    const of = `${argument} (${tensor})`;
    checkInteger(`${of}.rank`, rank, 1, this.maxRank);
    checkNumber(`${of}.scale`, scale, "finite", (x) => Number.isFinite(Math.fround(x)));
    if (rowScale !== undefined) {
      if (!(rowScale instanceof Float32Array) || rowScale.length !== shape.rows) {
        throw invalid(`${of}.rowScale`, rowScale, `it must be a Float32Array of length ${shape.rows}`);
      }
    }
    return {
      tensor,
      rank,
      scale,
      a: checkMatrix(`${of}.a`, a, rank, shape.columns),
      b: checkMatrix(`${of}.b`, b, shape.rows, rank),
      rowScale: rowScale ?? null,
    };
  }

  /** @internal */
  get handle(): Handle<"AdapterSlots"> {
    return this.#owner.handle;
  }

  /** Frees the memory, once the steps in flight that use it have ended. */
  dispose(): void {
    this.#owner.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Checks everything but the targets, which C++ looks up in the plan. */
export function checkSlotsOptions(options: AdapterSlotsOptions) {
  const { slots, maxRank, type, targets } = checkObject("options", options);
  checkInteger("options.slots", slots, 1, 4096);
  checkInteger("options.maxRank", maxRank, 1, 4096);
  if (!Object.hasOwn(adapterTypes, type)) throw invalid("options.type", type, 'it must be "f16" or "i8"');
  if (!Array.isArray(targets) || targets.length === 0) {
    throw invalid("options.targets", targets, "it must be an array of names of tensors");
  }
  targets.forEach((name, i) => {
    checkString(`options.targets[${i}]`, name);
  });
  return { slots, maxRank, type: adapterTypes[type], targets };
}

function checkMatrix(argument: string, matrix: AdapterMatrix, rows: number, columns: number) {
  const { type, data } = checkObject(argument, matrix);
  if (!Object.hasOwn(matrixTypes, type)) throw invalid(`${argument}.type`, type, 'it must be "F32", "F16" or "BF16"');
  const { id, bytes } = matrixTypes[type];
  const byteLength = rows * columns * bytes;
  const size = `${rows} x ${columns} values of type ${type} take ${byteLength} bytes`;
  if (data instanceof Uint8Array) {
    if (data.byteLength !== byteLength) throw invalid(`${argument}.data`, data, size);
    return { type: id, byteLength, data };
  }
  checkObject(`${argument}.data`, data);
  const file = checkInstance(`${argument}.data.file`, data.file, MappedFile);
  const offset = checkInteger(`${argument}.data.offset`, data.offset, 0, Number.MAX_SAFE_INTEGER);
  if (offset + byteLength > file.byteLength) {
    throw invalid(`${argument}.data.offset`, offset, `${size}, and ${file.path} has ${file.byteLength}`);
  }
  return { type: id, byteLength, data: { file: file.handle, offset } };
}
