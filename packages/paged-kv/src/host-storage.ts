import { checkInteger, PagedKvError } from "./errors.js";
import type { TokenStorage } from "./storage.js";

/** Sizes of a host storage; `width` is KV heads × head dimension. */
export interface HostKvStorageOptions {
  blockCount: number;
  blockSize: number;
  layerCount: number;
  width: number;
}

/**
 * K and V in ordinary memory, float32, for use without an engine.
 *
 * ```text
 *   per layer:  keys    slot 0 | slot 1 | slot 2 | ...     each `width` floats: kvHeads * headDim
 *               values  slot 0 | slot 1 | slot 2 | ...
 *
 *   bytes of a block:  layer 0 keys | layer 0 values | layer 1 keys | ...     each blockSize * width floats
 * ```
 */
export class HostKvStorage implements TokenStorage {
  readonly blockCount: number;
  /** Tokens of a block. */
  readonly blockSize: number;
  readonly blockBytes: number;
  readonly layerCount: number;
  /** Floats in one token's K (and in its V) of one layer: KV heads × head dimension. */
  readonly width: number;

  readonly #keys: Float32Array[] = [];
  readonly #values: Float32Array[] = [];
  readonly #written: Uint8Array[] = [];

  /**
   * Takes `8 * blockCount * blockSize * layerCount * width` bytes at once and never more.
   * @throws PagedKvError `INVALID_ARGUMENT` for sizes that are not positive integers.
   */
  constructor(options: HostKvStorageOptions) {
    const { blockCount, blockSize, layerCount, width } = options;
    checkInteger("blockSize", blockSize, 1, 0x7fffffff);
    checkInteger("blockCount", blockCount, 1, Math.floor(0x7fffffff / blockSize));
    checkInteger("layerCount", layerCount, 1, 0xffff);
    checkInteger("width", width, 1, 0x7fffffff);
    this.blockCount = blockCount;
    this.blockSize = blockSize;
    this.layerCount = layerCount;
    this.width = width;
    this.blockBytes = 8 * blockSize * layerCount * width;
    const slots = blockCount * blockSize;
    for (let layer = 0; layer < layerCount; layer++) {
      this.#keys.push(new Float32Array(slots * width));
      this.#values.push(new Float32Array(slots * width));
      this.#written.push(new Uint8Array(slots));
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

  copyBlock(from: number, to: number): void {
    this.#checkBlock(from);
    this.#checkBlock(to);
    const slots = this.blockSize;
    const floats = slots * this.width;
    for (let layer = 0; layer < this.layerCount; layer++) {
      for (const vectors of [this.#keys[layer]!, this.#values[layer]!]) {
        vectors.copyWithin(to * floats, from * floats, (from + 1) * floats);
      }
      this.#written[layer]!.copyWithin(to * slots, from * slots, (from + 1) * slots);
    }
  }

  /** @throws PagedKvError `UNWRITTEN_SLOT` when a layer of one of its tokens was never written. */
  readBlock(block: number): Uint8Array {
    this.#checkBlock(block);
    const floats = this.blockSize * this.width;
    const bytes = new Float32Array(2 * floats * this.layerCount);
    for (let layer = 0; layer < this.layerCount; layer++) {
      const unwritten = this.#written[layer]!.subarray(block * this.blockSize, (block + 1) * this.blockSize).indexOf(0);
      if (unwritten >= 0) {
        throw new PagedKvError(
          "UNWRITTEN_SLOT",
          `token ${unwritten} of block ${block} was never written in layer ${layer}; only full blocks can be read`,
          block,
        );
      }
      const [from, to] = [block * floats, (block + 1) * floats];
      bytes.set(this.#keys[layer]!.subarray(from, to), 2 * layer * floats);
      bytes.set(this.#values[layer]!.subarray(from, to), (2 * layer + 1) * floats);
    }
    return new Uint8Array(bytes.buffer);
  }

  /** All tokens of the block count as written then. */
  writeBlock(block: number, bytes: Uint8Array): void {
    this.#checkBlock(block);
    if (bytes.length !== this.blockBytes) {
      throw new PagedKvError(
        "INVALID_ARGUMENT",
        `a block has ${this.blockBytes} bytes, got ${bytes.length}`,
        bytes.length,
      );
    }
    // A copy: the bytes of a larger buffer need not start at a multiple of four.
    const vectors = new Float32Array(new Uint8Array(bytes).buffer);
    const floats = this.blockSize * this.width;
    for (let layer = 0; layer < this.layerCount; layer++) {
      const start = 2 * layer * floats;
      this.#keys[layer]!.set(vectors.subarray(start, start + floats), block * floats);
      this.#values[layer]!.set(vectors.subarray(start + floats, start + 2 * floats), block * floats);
      this.#written[layer]!.fill(1, block * this.blockSize, (block + 1) * this.blockSize);
    }
  }

  #check(layer: number, slot: number): void {
    checkInteger("layer", layer, 0, this.layerCount - 1);
    checkInteger("slot", slot, 0, this.blockCount * this.blockSize - 1);
  }

  #checkBlock(block: number): void {
    checkInteger("block", block, 0, this.blockCount - 1);
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
