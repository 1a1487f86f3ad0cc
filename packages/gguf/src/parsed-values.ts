import { type GGUFTensorInfo, gguf } from "@huggingface/gguf";
import { GgufError } from "./gguf-error.js";
import type { HeaderCursor } from "./header-cursor.js";
import type { HeaderLayout, MetadataPlace } from "./header-layout.js";
import { arrayTypeId, type GgufValue } from "./value-type.js";

/** What the parser of @huggingface/gguf reads: the short metadata values by key, and the tensor entries in file order. */
export interface ParsedValues {
  readonly shortValues: Readonly<Record<string, GgufValue>>;
  readonly tensors: readonly GGUFTensorInfo[];
}

/** Whether a metadata value is left out of what the parser sees: every array, and texts of more than 64 KB. */
export function isLongValue({ typeId, value, end }: MetadataPlace): boolean {
  return typeId === arrayTypeId || end - value > 65_536;
}

/**
 * Lets @huggingface/gguf parse the header whose structure `layout` has established. It never sees the file, only a header
 * put together from the checked bytes, without {@link isLongValue long values}: the parser reads an array from its start
 * again for every 2 MB it fetches, makes a text decoder for each of a vocabulary's 300,000 strings, and cuts a text off
 * where the bytes it has fetched end.
 */
export async function parseValues(cursor: HeaderCursor, layout: HeaderLayout): Promise<ParsedValues> {
  const header = shortHeader(cursor, layout);
  const serve: typeof fetch = async (_, init) => {
    const range = new Headers(init?.headers).get("range") ?? "";
    const [first = 0, last = 0] = (/^bytes=(\d+)-(\d+)$/.exec(range) ?? []).slice(1).map(Number);
    return new Response(header.subarray(first, last + 1), { status: 206 });
  };
  try {
    const { metadata, tensorInfos } = await gguf("https://header.invalid/", { fetch: serve });
    return { shortValues: metadata as unknown as Record<string, GgufValue>, tensors: tensorInfos };
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new GgufError("corrupt", `the header cannot be parsed: ${reason}`, { path: cursor.path, cause: error });
  }
}

function shortHeader({ bytes }: HeaderCursor, layout: HeaderLayout): Uint8Array<ArrayBuffer> {
  const kept = layout.metadata.filter((place) => !isLongValue(place));
  const parts = [
    bytes.subarray(0, 24),
    ...kept.map(({ start, end }) => bytes.subarray(start, end)),
    bytes.subarray(layout.tensorsStart, layout.end),
  ];
  const header = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    header.set(part, offset);
    offset += part.length;
  }
  new DataView(header.buffer).setBigUint64(16, BigInt(kept.length), true);
  return header;
}
