export { BlockPool } from "./block-pool.js";
export { PagedKvError, type PagedKvErrorCode } from "./errors.js";
export { PagedKv, type PagedKvOptions } from "./paged-kv.js";
export type { Sequence } from "./sequence.js";
export { HostKvStorage, type KvStorage } from "./storage.js";
