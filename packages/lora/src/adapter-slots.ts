import { LoraError } from "./errors.js";

/** How many slots there are, and how an adapter gets into one. */
export interface AdapterSlotsOptions {
  readonly slots: number;
  /**
   * Puts the adapter of `key` into `slot`, in place of what was there. Nobody uses the slot until it is done; when it
   * fails, those who asked for the adapter get its error and the slot counts as empty.
   */
  readonly load: (slot: number, key: string) => void | Promise<void>;
}

/** The right to use some slots. */
export interface AdapterLease {
  /** The slot of each adapter that was asked for, in that order. */
  readonly slots: readonly number[];
  /** Gives the slots back; once is enough, and again does nothing. */
  release(): void;
}

/** What a slot holds. */
export interface AdapterSlot {
  readonly slot: number;
  /** null: nothing that could be used. */
  readonly key: string | null;
  /** Leases on it. */
  readonly references: number;
  readonly loading: boolean;
  readonly pinned: boolean;
}

interface Slot {
  key: string | null;
  references: number;
  /** Settles when the load is over, without an error; undefined when nothing is being loaded. */
  loading: Promise<void> | undefined;
  /** What the last load failed with, for those who wait for it. */
  failure: { readonly error: unknown } | undefined;
  /** Tick of the last grant or release. */
  lastUse: number;
}

interface Waiter {
  readonly keys: readonly string[];
  readonly grant: (slots: number[]) => void;
  readonly refuse: (error: unknown) => void;
}

/**
 * Which adapter is in which slot: the books alone, the memory is somebody else's. Any number of adapters share few slots;
 * one that nobody uses gives way to another, the longest unused first. A request that finds no room waits, first come
 * first served: nobody is overtaken, so nobody starves. The same calls lead to the same slots.
 *
 * Adapters are told apart by a key of any text; a mix takes all its adapters at once or waits for all, so that two mixes
 * cannot wait for each other.
 */
export class AdapterSlots {
  readonly #slots: readonly Slot[];
  readonly #load: AdapterSlotsOptions["load"];
  readonly #byKey = new Map<string, number>();
  readonly #pinned = new Set<string>();
  readonly #unloading = new Map<string, { readonly done: Promise<void>; readonly finish: () => void }>();
  #waiters: Waiter[] = [];
  #tick = 0;

  /** @throws LoraError `invalid-argument` unless there is a slot */
  constructor({ slots, load }: AdapterSlotsOptions) {
    if (!Number.isInteger(slots) || slots < 1) {
      throw new LoraError("invalid-argument", `slots must be a positive integer, got ${slots}`, { value: slots });
    }
    this.#load = load;
    this.#slots = Array.from({ length: slots }, () => ({
      key: null,
      references: 0,
      loading: undefined,
      failure: undefined,
      lastUse: 0,
    }));
  }

  /** What each slot holds. */
  list(): AdapterSlot[] {
    return this.#slots.map(({ key, references, loading }, slot) => ({
      slot,
      key,
      references,
      loading: loading !== undefined,
      pinned: key !== null && this.#pinned.has(key),
    }));
  }

  /** Requests that wait for room. */
  get waiting(): number {
    return this.#waiters.length;
  }

  /**
   * Slots for all adapters of a request; resolves when there is room and each is loaded.
   *
   * @throws LoraError `no-slots` for more adapters than can ever be active together, `unloading`; what `load` fails with;
   *   the signal's reason when it is aborted first
   */
  async acquire(keys: readonly string[], { signal }: { signal?: AbortSignal | undefined } = {}): Promise<AdapterLease> {
    signal?.throwIfAborted();
    const distinct = [...new Set(keys)];
    const leaving = distinct.find((key) => this.#unloading.has(key));
    if (leaving !== undefined) {
      throw new LoraError("unloading", `the adapter ${JSON.stringify(leaving)} is being unloaded; load it again`, {
        value: leaving,
      });
    }
    this.#checkRoom(distinct);
    const granted = this.#waiters.length > 0 ? undefined : this.#grant(distinct);
    const held = granted ?? (await this.#wait(distinct, signal));
    const release = this.#releaser(held);
    try {
      await this.#loaded(held);
      signal?.throwIfAborted();
    } catch (error) {
      release();
      throw error;
    }
    const slotOf = new Map(distinct.map((key, i) => [key, held[i]!]));
    return { slots: keys.map((key) => slotOf.get(key)!), release };
  }

  /**
   * Keeps an adapter in its slot once it is there, used or not.
   *
   * @throws LoraError `no-slots` if as many are pinned as there are slots; requests that wait for more than is left are
   *   refused likewise
   */
  pin(key: string): void {
    if (!this.#pinned.has(key) && this.#pinned.size === this.#slots.length) {
      throw new LoraError("no-slots", `all ${this.#slots.length} slots are pinned; unpin another adapter first`, {
        value: key,
      });
    }
    this.#pinned.add(key);
    for (const waiter of [...this.#waiters]) {
      try {
        this.#checkRoom(waiter.keys);
      } catch (error) {
        this.#forget(waiter);
        waiter.refuse(error);
      }
    }
    this.#serve();
  }

  /** Lets an adapter give way to others again. */
  unpin(key: string): void {
    this.#pinned.delete(key);
    this.#serve();
  }

  /**
   * Takes an adapter out of its slot: resolves when nobody uses it and nobody who came before waits for it. Until then it
   * cannot be acquired; afterwards it is loaded anew.
   */
  unload(key: string): Promise<void> {
    const running = this.#unloading.get(key);
    if (running !== undefined) return running.done;
    let finish = () => {};
    const done = new Promise<void>((resolve) => {
      finish = resolve;
    });
    this.#unloading.set(key, { done, finish });
    this.#pinned.delete(key);
    this.#serve();
    return done;
  }

  /** More adapters than slots, or than are left beside the pinned ones, would wait forever. */
  #checkRoom(keys: readonly string[]): void {
    const others = [...this.#pinned].filter((key) => !keys.includes(key)).length;
    if (keys.length + others <= this.#slots.length) return;
    throw new LoraError(
      "no-slots",
      `${keys.length} adapters at a time do not fit into ${this.#slots.length} slots of which ${others} are pinned to others; start with more slots`,
      { value: keys.length },
    );
  }

  /** Takes a slot for each key, or none at all: then undefined. */
  #grant(keys: readonly string[]): number[] | undefined {
    const missing = keys.filter((key) => !this.#byKey.has(key));
    const free = this.#slots
      .map((_, slot) => slot)
      .filter((slot) => this.#mayGiveWay(slot, keys))
      .sort((x, y) => this.#order(x) - this.#order(y) || x - y);
    if (free.length < missing.length) return undefined;
    for (const [i, key] of missing.entries()) this.#start(free[i]!, key);
    const granted = keys.map((key) => this.#byKey.get(key)!);
    for (const index of granted) {
      this.#slots[index]!.references++;
      this.#slots[index]!.lastUse = ++this.#tick;
    }
    return granted;
  }

  #mayGiveWay(index: number, keys: readonly string[]): boolean {
    const { key, references, loading } = this.#slots[index]!;
    return (
      references === 0 && loading === undefined && (key === null || !(this.#pinned.has(key) || keys.includes(key)))
    );
  }

  /** Empty slots first, then the longest unused. */
  #order(index: number): number {
    const { key, lastUse } = this.#slots[index]!;
    return key === null ? 0 : lastUse;
  }

  #start(index: number, key: string): void {
    const slot = this.#slots[index]!;
    if (slot.key !== null) this.#byKey.delete(slot.key);
    this.#byKey.set(key, index);
    slot.key = key;
    slot.failure = undefined;
    const fail = (error: unknown) => {
      slot.failure = { error };
      slot.key = null;
      this.#byKey.delete(key);
    };
    slot.loading = Promise.resolve()
      .then(() => this.#load(index, key))
      .catch(fail)
      .then(() => {
        slot.loading = undefined;
        this.#serve();
      });
  }

  async #loaded(indices: readonly number[]): Promise<void> {
    const slots = indices.map((index) => this.#slots[index]!);
    for (const { loading } of slots) await loading;
    const failed = slots.find(({ failure }) => failure !== undefined);
    if (failed !== undefined) throw failed.failure!.error;
  }

  #releaser(indices: readonly number[]): () => void {
    let held = true;
    return () => {
      if (!held) return;
      held = false;
      for (const index of indices) {
        this.#slots[index]!.references--;
        this.#slots[index]!.lastUse = ++this.#tick;
      }
      this.#serve();
    };
  }

  #wait(keys: readonly string[], signal: AbortSignal | undefined): Promise<number[]> {
    return new Promise((resolve, reject) => {
      const abort = () => {
        this.#forget(waiter);
        reject(signal!.reason);
        this.#serve();
      };
      const settled = <T>(settle: (value: T) => void) => {
        return (value: T) => {
          signal?.removeEventListener("abort", abort);
          settle(value);
        };
      };
      const waiter: Waiter = { keys, grant: settled(resolve), refuse: settled(reject) };
      this.#waiters.push(waiter);
      signal?.addEventListener("abort", abort, { once: true });
    });
  }

  #forget(waiter: Waiter): void {
    this.#waiters = this.#waiters.filter((other) => other !== waiter);
  }

  /** After a change: those who wait get what they wait for, and unloading adapters that nobody needs any more leave. */
  #serve(): void {
    for (let first = this.#waiters[0]; first !== undefined; first = this.#waiters[0]) {
      const granted = this.#grant(first.keys);
      if (granted === undefined) break;
      this.#forget(first);
      first.grant(granted);
    }
    for (const [key, { finish }] of this.#unloading) {
      const index = this.#byKey.get(key);
      const slot = index === undefined ? undefined : this.#slots[index]!;
      if (slot !== undefined && (slot.references > 0 || slot.loading !== undefined)) continue;
      if (this.#waiters.some(({ keys }) => keys.includes(key))) continue;
      if (slot !== undefined) slot.key = null;
      this.#byKey.delete(key);
      this.#unloading.delete(key);
      finish();
    }
  }
}
