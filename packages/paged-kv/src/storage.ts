/**
 * Where K and V really stand, block by block: device pages behind an engine, or host memory. The cache decides which block
 * belongs to whom; a storage moves bytes. Blocks outside `0..blockCount - 1` and bytes of another size are refused with an
 * error, before any change. `storageSuite` tests all of this.
 */
export interface KvStorage {
  /** Blocks in all, as many as the cache that uses this storage has. */
  readonly blockCount: number;
  /** Bytes of K and V of one block, all layers together. */
  readonly blockBytes: number;
  /**
   * Makes the content of block `to` that of block `from`. It may be done later, as long as it is done before anything
   * that is asked of the storage, or run on the device, after this call.
   */
  copyBlock(from: number, to: number): void;
  /** K and V of a block, all layers, `blockBytes` bytes in an order of the storage's own. The bytes stay as they are. */
  readBlock(block: number): Uint8Array | Promise<Uint8Array>;
  /** Fills a block with what `readBlock` gave, here or in another process. */
  writeBlock(block: number, bytes: Uint8Array): void | Promise<void>;
}

/**
 * A storage that is also read and written token by token, and knows what was written. A slot is the place of one token in
 * every layer: `slot = block * blockSize + offset`.
 */
export interface TokenStorage extends KvStorage {
  readonly layerCount: number;
  /** Copies one token's K and V of one layer in. */
  write(layer: number, slot: number, key: Float32Array, value: Float32Array): void;
  /** Copies one token's K and V of one layer out. The cache asks for written slots only. */
  read(layer: number, slot: number, key: Float32Array, value: Float32Array): void;
  /** Whether this layer's K and V were written since the slot was last forgotten. */
  isWritten(layer: number, slot: number): boolean;
  /** `count` slots from `slot` on hold nothing any more: in every layer they count as unwritten. */
  forget(slot: number, count: number): void;
}

/** Whether a storage reads and writes single tokens. */
export function isTokenStorage(storage: KvStorage): storage is TokenStorage {
  return "isWritten" in storage;
}
