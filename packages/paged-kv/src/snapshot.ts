import { ByteReader } from "./byte-reader.js";
import { checkInteger, PagedKvError } from "./errors.js";
import type { PagedKv } from "./paged-kv.js";
import type { Sequence } from "./sequence.js";
import type { KvStorage } from "./storage.js";

/** Bytes in pieces of any size: a read stream, an array of chunks, a snapshot itself. */
export type SnapshotSource = AsyncIterable<Uint8Array> | Iterable<Uint8Array>;

// "nwkv", version 1. All numbers are little-endian.
const MAGIC = 0x766b776e;
const VERSION = 1;
const FIXED_BYTES = 28;
const LONGEST_TEXT = 0xffff;

/**
 * Writes the full blocks of a sequence:
 *
 * ```text
 *   offset  0  u32  "nwkv"                        28  the fingerprint, UTF-8
 *           4  u32  version                           the extra keys, UTF-8
 *           8  u32  tokens in a block                 tokens, i32 each
 *          12  u32  bytes of a block                  u32 checksum of everything so far
 *          16  u32  blocks                            then for each block:
 *          20  u32  bytes of the fingerprint            its bytes, as the storage gave them
 *          24  u32  bytes of the extra keys             u32 checksum of them
 * ```
 */
export function writeSnapshot(
  sequence: Sequence,
  storage: KvStorage,
  blockSize: number,
  fingerprint: string,
): AsyncGenerator<Uint8Array, void, undefined> {
  const texts = [encode("fingerprint", fingerprint), encode("extraKeys", sequence.extraKeys)] as const;
  return chunks(sequence, storage, blockSize, texts);
}

async function* chunks(
  sequence: Sequence,
  storage: KvStorage,
  blockSize: number,
  [fingerprint, extraKeys]: readonly [Uint8Array, Uint8Array],
): AsyncGenerator<Uint8Array, void, undefined> {
  // A fork holds the blocks, whatever becomes of the sequence while they are read. Not before the first read: an iterator
  // that nobody starts is never closed either.
  const held = sequence.fork();
  try {
    held.truncate(held.length - (held.length % blockSize));
    const tokens = held.tokens();
    const textBytes = fingerprint.length + extraKeys.length;
    const header = new Uint8Array(FIXED_BYTES + textBytes + 4 * tokens.length + 4);
    const view = new DataView(header.buffer);
    const fields = [MAGIC, VERSION, blockSize, storage.blockBytes, tokens.length / blockSize];
    fields.push(fingerprint.length, extraKeys.length);
    for (const [i, field] of fields.entries()) view.setUint32(4 * i, field, true);
    header.set(fingerprint, FIXED_BYTES);
    header.set(extraKeys, FIXED_BYTES + fingerprint.length);
    const start = FIXED_BYTES + textBytes;
    for (const [i, token] of tokens.entries()) view.setInt32(start + 4 * i, token, true);
    view.setUint32(header.length - 4, checksum(header, header.length - 4), true);
    yield header;
    for (const block of held.blockTable) {
      const bytes = await storage.readBlock(block);
      yield bytes;
      const sum = new Uint8Array(4);
      new DataView(sum.buffer).setUint32(0, checksum(bytes, bytes.length), true);
      yield sum;
    }
  } finally {
    held.drop();
  }
}

/** Reads a snapshot into the cache. A block is found by others only when the whole snapshot was read and is good. */
export async function readSnapshot(
  kv: PagedKv,
  source: SnapshotSource,
  storage: KvStorage,
  fingerprint: string,
): Promise<Int32Array | null> {
  const reader = new ByteReader(source);
  try {
    const { tokens, extraKeys } = await readHeader(reader, kv.blockSize, storage.blockBytes, fingerprint);
    const sequence = kv.create({ extraKeys });
    try {
      // One token more than there are: at least one is always left to compute.
      sequence.takeHits([...tokens, 0]);
      const cached = sequence.length / kv.blockSize;
      if (!sequence.ensureCapacity(tokens.length)) return null;
      for (let i = 0; i < tokens.length / kv.blockSize; i++) {
        const bytes = await readBlock(reader, storage.blockBytes, i);
        if (i >= cached) await storage.writeBlock(sequence.blockTable[i]!, bytes);
      }
      if (!(await reader.isAtEnd())) throw damaged("it goes on after its last block");
      sequence.advance(tokens.subarray(sequence.length));
      return tokens;
    } finally {
      sequence.drop();
    }
  } finally {
    await reader.close();
  }
}

async function readHeader(reader: ByteReader, blockSize: number, blockBytes: number, fingerprint: string) {
  const fixed = await read(reader, FIXED_BYTES);
  const view = new DataView(fixed.buffer);
  const [magic, version, size, bytes, blocks, fingerprintBytes, extraKeysBytes] = Array.from(
    { length: FIXED_BYTES / 4 },
    (_, i) => view.getUint32(4 * i, true),
  ) as [number, number, number, number, number, number, number];
  if (magic !== MAGIC) throw new PagedKvError("NOT_A_SNAPSHOT", "the bytes are not a snapshot of a KV cache", magic);
  if (version !== VERSION) {
    throw new PagedKvError(
      "NOT_A_SNAPSHOT",
      `snapshot has version ${version}, this reads ${VERSION}; make it anew`,
      version,
    );
  }
  if (size !== blockSize) throw mismatch("tokens in a block", size, blockSize);
  if (bytes !== blockBytes) throw mismatch("bytes of a block", bytes, blockBytes);
  const tokenBytes = 4 * blocks * blockSize;
  if (fingerprintBytes > LONGEST_TEXT || extraKeysBytes > LONGEST_TEXT || tokenBytes > 0x7fffffff) {
    throw damaged("the sizes in its header cannot be");
  }
  const rest = await read(reader, fingerprintBytes + extraKeysBytes + tokenBytes + 4);
  const header = new Uint8Array(FIXED_BYTES + rest.length);
  header.set(fixed);
  header.set(rest, FIXED_BYTES);
  const body = new DataView(header.buffer);
  if (body.getUint32(header.length - 4, true) !== checksum(header, header.length - 4)) {
    throw damaged("the checksum of its header is wrong");
  }
  const textStart = FIXED_BYTES + fingerprintBytes;
  const written = new TextDecoder().decode(header.subarray(FIXED_BYTES, textStart));
  if (written !== fingerprint) throw mismatch("fingerprint", written, fingerprint);
  const extraKeys = new TextDecoder().decode(header.subarray(textStart, textStart + extraKeysBytes));
  const tokenStart = textStart + extraKeysBytes;
  const tokens = Int32Array.from({ length: blocks * blockSize }, (_, i) => body.getInt32(tokenStart + 4 * i, true));
  return { tokens, extraKeys };
}

async function readBlock(reader: ByteReader, blockBytes: number, index: number): Promise<Uint8Array> {
  const bytes = await read(reader, blockBytes);
  const sum = new DataView((await read(reader, 4)).buffer).getUint32(0, true);
  if (sum !== checksum(bytes, blockBytes)) throw damaged(`the checksum of its block ${index} is wrong`);
  return bytes;
}

async function read(reader: ByteReader, count: number): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = await reader.read(count);
  if (bytes === null) throw damaged("it ends too soon");
  return bytes;
}

function encode(name: string, text: string): Uint8Array {
  const bytes = new TextEncoder().encode(text);
  checkInteger(`bytes of ${name}`, bytes.length, 0, LONGEST_TEXT);
  return bytes;
}

/** Of `bytes[0..count - 1]`, four at a time, in file order on any machine: each step is a bijection of the sum so far. */
function checksum(bytes: Uint8Array, count: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, count);
  const whole = count - (count % 4);
  let sum = count;
  for (let i = 0; i < whole; i += 4) {
    sum = Math.imul(sum ^ view.getInt32(i, true), 0x9e3779b1);
    sum ^= sum >>> 15;
  }
  for (let i = whole; i < count; i++) sum = Math.imul(sum ^ bytes[i]!, 0x85ebca6b);
  return sum >>> 0;
}

function damaged(how: string): PagedKvError {
  return new PagedKvError("SNAPSHOT_DAMAGED", `the snapshot is damaged: ${how}; nothing was restored`);
}

function mismatch(what: string, value: unknown, expected: unknown): PagedKvError {
  return new PagedKvError(
    "SNAPSHOT_MISMATCH",
    `the snapshot has ${what} ${String(value)}, this cache has ${String(expected)}; nothing was restored`,
    value,
  );
}
