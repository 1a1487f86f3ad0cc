import { addon, type Handle } from "./addon.js";
import { checkInteger, checkMultiple, checkObject, invalid } from "./check.js";
import { callNative } from "./error.js";
import { Owner } from "./owner.js";

/** How keys and values are stored. */
export type KvType = "f16" | "f32";

const kvTypes: Readonly<Record<KvType, number>> = { f16: 0, f32: 1 };

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
  readonly #owner: Owner<Handle<"KvCache">>;

  /** @internal */
  constructor(shape: KvShape) {
    checkObject("shape", shape);
    const { layers, kvHeads, headDim, blockSize, blocks, type } = shape;
    checkInteger("shape.layers", layers, 1);
    checkInteger("shape.kvHeads", kvHeads, 1);
    checkMultiple("shape.headDim", headDim, 16);
    checkMultiple("shape.blockSize", blockSize, 16);
    checkInteger("shape.blocks", blocks, 1);
    if (!Object.hasOwn(kvTypes, type)) throw invalid("shape.type", type, 'it must be "f16" or "f32"');
    this.shape = Object.freeze({ layers, kvHeads, headDim, blockSize, blocks, type });
    const native = callNative(() => addon().createKvCache({ ...this.shape, type: kvTypes[type] }));
    this.byteLength = native.byteLength;
    this.#owner = new Owner("KvCache", native.handle);
  }

  /** The pages of one layer, for an encoder. */
  layer(index: number): KvLayer {
    checkInteger("index", index, 0, this.shape.layers - 1);
    return new KvLayer(this, index);
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
