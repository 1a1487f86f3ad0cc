import {
  type AdapterType,
  type AdapterUse,
  type Device,
  type AdapterSlots as DeviceSlots,
  type AdapterTarget as DeviceTarget,
  KernelError,
  type Plan,
} from "@niwaki/kernels-native";
import { AdapterSlots, type BaseShape, type LoraAdapter, LoraError, LoraRegistry, readAdapter } from "@niwaki/lora";
import { invalidOption } from "./options.js";

/** The memory for adapters that run. It is taken when the first adapter is loaded. */
export interface AdapterOptions {
  /** Adapters that answers can use at one time; more wait their turn. 8 if absent. */
  slots?: number;
  /** The highest rank; memory is taken for it. 16 if absent. */
  maxRank?: number;
  /** How adapters are kept: "f16" (the default), or "i8": half the memory and reading, with a scale for each rank. */
  type?: AdapterType;
}

/** One adapter by its name, or several that are added with their scales (1 if absent). */
export type AdapterChoice = string | readonly { readonly name: string; readonly scale?: number }[];

/** An adapter that was loaded. */
export interface AdapterInfo {
  readonly name: string;
  readonly parameters: number;
  /** Bytes in host memory. */
  readonly byteLength: number;
  /** Whether it keeps its slot when nobody uses it. */
  readonly pinned: boolean;
  /** Where it is; null while it is in host memory only. */
  readonly slot: number | null;
  /** Answers that run with it. */
  readonly answers: number;
}

/** What a request runs with. */
export interface RequestAdapters {
  readonly slots: DeviceSlots;
  readonly uses: readonly AdapterUse[];
  /** Names what was computed with them: other adapters, or the same in another mix, give other keys and values. */
  readonly cacheKey: string;
  /** Gives the slots back. */
  release(): void;
}

const MOST_IN_MIX = 16;

/**
 * The adapters of a model: any number in host memory, as many in slots of the device as there are. A slot is loaded between
 * two steps when an answer needs an adapter that is in none; the one that was not used for longest gives way.
 */
export class Adapters {
  readonly #device: Device;
  readonly #plan: Plan;
  readonly #base: BaseShape;
  readonly #targets: string[];
  readonly #options: Required<AdapterOptions>;
  readonly #registry = new LoraRegistry();
  readonly #books: AdapterSlots;
  /** By the registry's key: what the device loads. */
  readonly #packed = new Map<string, DeviceTarget[]>();
  #memory: Promise<DeviceSlots> | undefined;

  /** @internal */
  constructor(device: Device, plan: Plan, base: BaseShape, targets: string[], options: AdapterOptions) {
    this.#device = device;
    this.#plan = plan;
    this.#base = base;
    this.#targets = targets;
    this.#options = checkAdapterOptions(options);
    this.#books = new AdapterSlots({
      slots: this.#options.slots,
      load: async (slot, key) => (await this.#slots()).load(slot, this.#packed.get(key)!),
    });
  }

  /**
   * Reads an adapter, a folder of PEFT's or a GGUF, and keeps it in host memory under a name. A pinned one gets a slot now
   * and keeps it.
   * @throws LoraError naming the tensor for what cannot be applied, `name-taken`; GgufError for a broken file; ModelError
   * `invalid-option` for a rank above `adapters.maxRank`; KernelError `out-of-memory`.
   */
  async load(path: string, options: { name: string; pinned?: boolean }): Promise<AdapterInfo> {
    const { name, pinned = false } = options;
    const adapter = await readAdapter(path, this.#base);
    const packed = await this.#pack(adapter);
    const { key } = this.#registry.add(name, adapter);
    this.#packed.set(key, packed);
    if (pinned) {
      try {
        this.#books.pin(key);
        (await this.#books.acquire([key])).release();
      } catch (error) {
        await this.unload(name);
        throw error;
      }
    }
    return this.#info(name);
  }

  /**
   * Forgets an adapter: new answers cannot name it; resolves when those that run with it have ended.
   * @throws LoraError `unknown-adapter`
   */
  async unload(name: string): Promise<void> {
    const { key } = this.#registry.remove(name);
    await this.#books.unload(key);
    this.#packed.delete(key);
  }

  /** All adapters, in the order in which they were loaded. */
  list(): AdapterInfo[] {
    return this.#registry.list().map(({ name }) => this.#info(name));
  }

  /**
   * @internal The adapters of a choice, looked up now, so that unknown names fail at the call; the function that is
   * returned waits for slots. Undefined for no adapter.
   * @throws LoraError `unknown-adapter`; ModelError `invalid-option`
   */
  choose(choice: AdapterChoice | undefined): ((signal?: AbortSignal) => Promise<RequestAdapters>) | undefined {
    const mix = checkChoice(choice);
    if (mix.length === 0) return undefined;
    const keys = mix.map(({ name }) => this.#registry.get(name).key);
    const cacheKey = JSON.stringify(mix.map(({ scale }, i) => [keys[i], scale]));
    return async (signal) => {
      for (const [i, key] of keys.entries()) {
        if (this.#packed.has(key)) continue;
        throw new LoraError(
          "unknown-adapter",
          `the adapter ${JSON.stringify(mix[i]!.name)} was unloaded before its answer began`,
        );
      }
      const lease = await this.#books.acquire(keys, { signal });
      const uses = lease.slots.map((slot, i) => ({ slot, weight: mix[i]!.scale }));
      return { slots: await this.#slots(), uses, cacheKey, release: () => lease.release() };
    };
  }

  /** @internal */
  async dispose(): Promise<void> {
    // A device that could not give the memory has nothing to free.
    (await this.#memory?.catch(() => undefined))?.dispose();
  }

  #slots(): Promise<DeviceSlots> {
    this.#memory ??= this.#device
      .createAdapterSlots(this.#plan, { ...this.#options, targets: this.#targets })
      .catch((error: unknown) => {
        this.#memory = undefined;
        throw error;
      });
    return this.#memory;
  }

  /** What the device loads; a DoRA's norms are computed here, one tensor at a time, so that steps run in between. */
  async #pack(adapter: LoraAdapter): Promise<DeviceTarget[]> {
    const packed: DeviceTarget[] = [];
    for (const { tensor, rank, scale, a, b, magnitude } of adapter) {
      if (rank > this.#options.maxRank) {
        throw invalidOption("adapters.maxRank", this.#options.maxRank, `${rank} and more for the rank of ${tensor}`);
      }
      const target = { tensor, rank, scale, a, b };
      if (magnitude === undefined) {
        packed.push(target);
        continue;
      }
      const norms = await (await this.#slots()).rowNorms(target);
      const at = norms.indexOf(0);
      if (at >= 0) {
        throw new KernelError(
          "non-finite",
          `${tensor}: row ${at} of W + scale · B A is zero; DoRA divides by its norm`,
        );
      }
      packed.push({ ...target, rowScale: norms.map((norm, r) => magnitude[r]! / norm) });
    }
    await this.#slots();
    return packed;
  }

  #info(name: string): AdapterInfo {
    const { adapter, key } = this.#registry.get(name);
    const held = this.#books.list().find((slot) => slot.key === key);
    return {
      name,
      parameters: adapter.parameterCount,
      byteLength: adapter.byteLength,
      pinned: held?.pinned ?? false,
      slot: held?.slot ?? null,
      answers: held?.references ?? 0,
    };
  }
}

/** @throws ModelError `invalid-option` */
export function checkAdapterOptions({ slots = 8, maxRank = 16, type = "f16" }: AdapterOptions = {}) {
  const whole = (value: number) => Number.isInteger(value) && value >= 1 && value <= 4096;
  if (!whole(slots)) throw invalidOption("adapters.slots", slots, "a whole number from 1 to 4096");
  if (!whole(maxRank)) throw invalidOption("adapters.maxRank", maxRank, "a whole number from 1 to 4096");
  if (type !== "f16" && type !== "i8") throw invalidOption("adapters.type", type, '"f16" or "i8"');
  return { slots, maxRank, type };
}

function checkChoice(choice: AdapterChoice | undefined): { name: string; scale: number }[] {
  if (choice === undefined) return [];
  const list = typeof choice === "string" ? [{ name: choice }] : choice;
  if (!Array.isArray(list)) throw invalidOption("adapter", choice, "a name, or a list of { name, scale }");
  if (list.length > MOST_IN_MIX) throw invalidOption("adapter", list.length, `a mix of at most ${MOST_IN_MIX}`);
  return list.map((part: { name?: unknown; scale?: unknown } | null) => {
    const { name, scale = 1 } = part ?? {};
    if (typeof name !== "string") throw invalidOption("adapter", name, "the name of an adapter");
    if (typeof scale !== "number" || !Number.isFinite(scale)) {
      throw invalidOption("adapter", scale, `a finite number for the scale of ${JSON.stringify(name)}`);
    }
    return { name, scale };
  });
}
