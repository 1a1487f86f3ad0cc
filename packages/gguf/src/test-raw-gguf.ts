// For tests: GGUF files put together byte by byte, so that they can be wrong in any way.

/** Ids of value types, as the specification has them. */
export const typeIds = { uint8: 0, uint32: 4, float32: 6, bool: 7, string: 8, array: 9, uint64: 10 };

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

export function u64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

export function text(value: string | Buffer): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u64(bytes.length), bytes]);
}

/** A metadata entry; `value` are the bytes after the type id. */
export function entry(key: string | Buffer, typeId: number, ...value: Buffer[]): Buffer {
  return Buffer.concat([text(key), u32(typeId), ...value]);
}

/** A tensor's entry in the header. */
export function tensorInfo(
  name: string | Buffer,
  dims: (number | bigint)[],
  typeId: number,
  offset: number | bigint,
): Buffer {
  return Buffer.concat([text(name), u32(dims.length), ...dims.map(u64), u32(typeId), u64(offset)]);
}

/** A whole file; counts are right unless given, data starts at the next multiple of 32 (or `alignment`). */
export function rawGguf(parts: {
  magic?: string;
  version?: Buffer;
  keyCount?: number | bigint;
  tensorCount?: number | bigint;
  entries?: Buffer[];
  tensors?: Buffer[];
  alignment?: number;
  data?: Uint8Array;
}): Buffer {
  const { entries = [], tensors = [], alignment = 32, data = Buffer.alloc(0) } = parts;
  const header = Buffer.concat([
    Buffer.from(parts.magic ?? "GGUF"),
    parts.version ?? u32(3),
    u64(parts.tensorCount ?? tensors.length),
    u64(parts.keyCount ?? entries.length),
    ...entries,
    ...tensors,
  ]);
  const padding = data.length === 0 ? 0 : Math.ceil(header.length / alignment) * alignment - header.length;
  return Buffer.concat([header, Buffer.alloc(padding), data]);
}
