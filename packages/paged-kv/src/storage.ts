import { checkInteger, PagedKvError } from "./errors.js";

/**
 * Where K and V really stand. A slot is the place of one token in every layer: `slot = block * blockSize + offset`.
 * The cache decides which slots belong to whom; a storage moves vectors and knows which of them were written.
 */
export interface KvStorage {
  /** Slots in all: `blockCount * blockSize` of the cache that uses this storage. */
  readonly slotCount: number;
  readonly layerCount: number;
  /** Copies one token's K and V of one layer in. */
  write(layer: number, slot: number, key: Float32Array, value: Float32Array): void;
  /** Copies one token's K and V of one layer out. The cache asks for written slots only. */
  read(layer: number, slot: number, key: Float32Array, value: Float32Array): void;
  /** Whether this layer's K and V were written since the slot was last forgotten. */
  isWritten(layer: number, slot: number): boolean;
  /** `count` slots from `slot` on no longer belong to anybody: in every layer they count as unwritten. */
  forget(slot: number, count: number): void;
}

/**
 * K and V in ordinary memory, float32, for use without an engine.
 *
 * ```text
 *   per layer:  keys    slot 0 | slot 1 | slot 2 | ...     each `width` floats: kvHeads * headDim
 *               values  slot 0 | slot 1 | slot 2 | ...
 * ```
 */
export class HostKvStorage implements KvStorage {
  readonly slotCount: number;
  readonly layerCount: number;
  /** Floats in one token's K (and in its V) of one layer: KV heads × head dimension. */
  readonly width: number;

  readonly #keys: Float32Array[] = [];
  readonly #values: Float32Array[] = [];
  readonly #written: Uint8Array[] = [];

  /**
   * Takes `8 * slotCount * layerCount * width` bytes at once and never more.
   * @throws PagedKvError `INVALID_ARGUMENT` for sizes that are not positive integers.
   */
  constructor(options: { slotCount: number; layerCount: number; width: number }) {
    const { slotCount, layerCount, width } = options;
    checkInteger("slotCount", slotCount, 1, 0x7fffffff);
    checkInteger("layerCount", layerCount, 1, 0xffff);
    checkInteger("width", width, 1, 0x7fffffff);
    this.slotCount = slotCount;
    this.layerCount = layerCount;
    this.width = width;
    for (let layer = 0; layer < layerCount; layer++) {
      this.#keys.push(new Float32Array(slotCount * width));
      this.#values.push(new Float32Array(slotCount * width));
      this.#written.push(new Uint8Array(slotCount));
    }
  }

  write(layer: number, slot: number, key: Float32Array, value: Float32Array): void {
    this.#check(layer, slot);
    this.#checkWidth("key", key);
    this.#checkWidth("value", value);
    this.#keys[layer]!.set(key, slot * this.width);
    this.#values[layer]!.set(value, slot * this.width);
    this.#written[layer]![slot] = 1;
  }

  read(layer: number, slot: number, key: Float32Array, value: Float32Array): void {
    this.#check(layer, slot);
    this.#checkWidth("key", key);
    this.#checkWidth("value", value);
    const start = slot * this.width;
    const keys = this.#keys[layer]!;
    const values = this.#values[layer]!;
    // A loop rather than set(subarray): a read makes no garbage.
    for (let i = 0; i < this.width; i++) {
      key[i] = keys[start + i]!;
      value[i] = values[start + i]!;
    }
  }

  isWritten(layer: number, slot: number): boolean {
    this.#check(layer, slot);
    return this.#written[layer]![slot] === 1;
  }

  forget(slot: number, count: number): void {
    for (const written of this.#written) written.fill(0, slot, slot + count);
  }

  #check(layer: number, slot: number): void {
    checkInteger("layer", layer, 0, this.layerCount - 1);
    checkInteger("slot", slot, 0, this.slotCount - 1);
  }

  #checkWidth(name: string, vector: Float32Array): void {
    if (vector.length !== this.width) {
      throw new PagedKvError(
        "INVALID_ARGUMENT",
        `${name} must have ${this.width} floats (KV heads × head dimension), got ${vector.length}`,
        vector.length,
      );
    }
  }
}
