import { addon, type Handle } from "./addon.js";
import { checkInteger, checkMultiple, checkObject, invalid } from "./check.js";
import { callNative } from "./error.js";
import { Owner } from "./owner.js";

/** How keys and values are stored. `q8`: 8-bit integers with a float32 scale for each token and KV head, K and V apart. */
export type KvType = "f16" | "f32" | "q8";

const kvTypes: Readonly<Record<KvType, number>> = { f16: 0, f32: 1, q8: 2 };

/** One block id serves all layers: a block holds `blockSize` tokens of each. */
export interface KvShape {
  layers: number;
  kvHeads: number;
  /** A multiple of 16. */
  headDim: number;
  /** Tokens in a block; a multiple of 16. */
  blockSize: number;
  blocks: number;
  type: KvType;
}

/**
 * The paged keys and values of every layer; made by `Device.createKvCache`. Its memory is reserved at once and taken from
 * the system block by block, as blocks are first written. A plan that uses it keeps it alive after `dispose()`.
 */
export class KvCache implements Disposable {
  readonly shape: Readonly<KvShape>;
  /** Bytes reserved. */
  readonly byteLength: number;
  /** Bytes of one block, all layers together. */
  readonly blockByteLength: number;
  readonly #owner: Owner<Handle<"KvCache">>;

  /** @internal */
  constructor(device: Handle<"Device">, shape: KvShape) {
    checkObject("shape", shape);
    const { layers, kvHeads, headDim, blockSize, blocks, type } = shape;
    checkInteger("shape.layers", layers, 1);
    checkInteger("shape.kvHeads", kvHeads, 1);
    checkMultiple("shape.headDim", headDim, 16);
    checkMultiple("shape.blockSize", blockSize, 16);
    checkInteger("shape.blocks", blocks, 1);
    if (!Object.hasOwn(kvTypes, type)) throw invalid("shape.type", type, 'it must be "f16", "f32" or "q8"');
    this.shape = Object.freeze({ layers, kvHeads, headDim, blockSize, blocks, type });
    const native = callNative(() => addon().createKvCache(device, { ...this.shape, type: kvTypes[type] }));
    this.byteLength = native.byteLength;
    this.blockByteLength = native.blockByteLength;
    this.#owner = new Owner("KvCache", native.handle);
  }

  /** The pages of one layer, for an encoder. */
  layer(index: number): KvLayer {
    checkInteger("index", index, 0, this.shape.layers - 1);
    return new KvLayer(this, index);
  }

  /**
   * Copies a block of all layers onto another. Like `readBlock` and `writeBlock` it works at once: not while a step runs
   * that uses the cache.
   */
  copyBlock(from: number, to: number): void {
    this.#checkBlock("from", from);
    this.#checkBlock("to", to);
    callNative(() => addon().copyKvBlock(this.handle, from, to));
  }

  /** The bytes of a block, in the order of the device's kernels. */
  readBlock(block: number): Uint8Array {
    this.#checkBlock("block", block);
    return callNative(() => addon().readKvBlock(this.handle, block));
  }

  /** Fills a block with what `readBlock` gave of a cache of the same shape, made by the same kind of device. */
  writeBlock(block: number, bytes: Uint8Array): void {
    this.#checkBlock("block", block);
    if (bytes.byteLength !== this.blockByteLength) {
      throw invalid("bytes", bytes.byteLength, `a block of this cache has ${this.blockByteLength} bytes`);
    }
    callNative(() => addon().writeKvBlock(this.handle, block, bytes));
  }

  #checkBlock(argument: string, block: number): void {
    checkInteger(argument, block, 0, this.shape.blocks - 1);
  }

  /** @internal */
  get handle(): Handle<"KvCache"> {
    return this.#owner.handle;
  }

  dispose(): void {
    this.#owner.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The pages of one layer of a cache. */
export class KvLayer {
  readonly cache: KvCache;
  readonly index: number;

  /** @internal */
  constructor(cache: KvCache, index: number) {
    this.cache = cache;
    this.index = index;
  }
}
