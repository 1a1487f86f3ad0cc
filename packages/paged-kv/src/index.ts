export { BlockPool, type BlockPoolOptions } from "./block-pool.js";
export { PagedKvError, type PagedKvErrorCode } from "./errors.js";
export { HostKvStorage, type HostKvStorageOptions } from "./host-storage.js";
export { PagedKv, type PagedKvOptions } from "./paged-kv.js";
export type { CacheEvent } from "./prefix-cache.js";
export type { Sequence } from "./sequence.js";
export type { SnapshotSource } from "./snapshot.js";
export type { Statistics } from "./statistics.js";
export type { KvStorage, TokenStorage } from "./storage.js";
