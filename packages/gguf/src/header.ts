import { HeaderCursor } from "./header-cursor.js";
import { readHeaderLayout } from "./header-layout.js";
import { readLongValue } from "./long-value.js";
import { isLongValue, parseValues } from "./parsed-values.js";
import { checkTensors, type GgufTensor } from "./tensor-table.js";
import type { GgufValue } from "./value-type.js";

/** Bytes of magic, version and counts. */
export const metadataStart = 24;

/** All that a header says, checked. */
export interface GgufHeader {
  readonly version: number;
  readonly alignment: number;
  readonly metadata: Map<string, GgufValue>;
  /** Where the bytes of the metadata end; they begin behind the counts, at {@link metadataStart}. */
  readonly metadataEnd: number;
  readonly tensors: Map<string, GgufTensor>;
}

/**
 * Reads the header at the start of `bytes`, the first bytes (or all) of a file of `fileSize` bytes.
 *
 * @param path names the file in errors
 * @throws GgufError if the header is not sound or announces what the file does not hold
 * @throws MoreBytesNeeded if the header is longer than `bytes`
 */
export async function parseHeader(bytes: Uint8Array, fileSize: number, path: string): Promise<GgufHeader> {
  const cursor = new HeaderCursor(bytes, fileSize, path);
  const layout = readHeaderLayout(cursor);
  const { shortValues, tensors } = await parseValues(cursor, layout);
  const metadata = new Map<string, GgufValue>();
  for (const place of layout.metadata) {
    const { key, start, value } = place;
    if (isLongValue(place)) {
      metadata.set(key, readLongValue(cursor, place));
    } else if (Object.hasOwn(shortValues, key)) {
      metadata.set(key, withByteOrderMark(shortValues[key]!, cursor.view, value));
    } else {
      cursor.subject = { key };
      throw cursor.error("corrupt", `the metadata key "${key}" cannot be read; rename it`, start);
    }
  }
  return {
    version: layout.version,
    alignment: layout.alignment,
    metadata,
    metadataEnd: layout.tensorsStart,
    tensors: checkTensors(tensors, layout, fileSize, path),
  };
}

/** The parser drops U+FEFF at the start of a text, which shows in its length; what the file has is kept. */
function withByteOrderMark(value: GgufValue, view: DataView, offset: number): GgufValue {
  return typeof value === "string" && Buffer.byteLength(value) < view.getUint32(offset, true)
    ? `\ufeff${value}`
    : value;
}
