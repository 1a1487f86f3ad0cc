import { GgufError } from "./gguf-error.js";
import { type SafetensorsDtype, safetensorsBytes, safetensorsDtypes } from "./safetensors-header.js";
import { type TensorData, writeFileWhole, writeTensorData } from "./whole-file.js";

/** A tensor to write. */
export interface SafetensorsTensorToWrite {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  /** Lengths, slowest first. */
  readonly shape: readonly number[];
  /** Little-endian, rows one after another. */
  readonly data: TensorData;
}

/** What a safetensors file holds. */
export interface SafetensorsContent {
  readonly tensors: readonly SafetensorsTensorToWrite[];
  /** Texts to stand under `__metadata__`. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/** Tensor data begins at a multiple of this; the header is padded with blanks, as the format allows. */
const alignment = 8;

/**
 * Writes a safetensors file with its tensors in the order given. Data is streamed; the file appears under `path` when it
 * is complete, in place of an older one; on failure nothing is left behind.
 *
 * @throws GgufError `invalid-argument` for a name that stands twice or is reserved, a type or shape that is none, or data
 *   that is not exactly as long as they say; `unwritable` if the file cannot be written
 */
export async function writeSafetensors(path: string, content: SafetensorsContent): Promise<void> {
  const { tensors, metadata } = content;
  const entries: [string, unknown][] = metadata === undefined ? [] : [["__metadata__", metadata]];
  const names = new Set<string>(["__metadata__", "__proto__"]);
  const sizes: number[] = [];
  let offset = 0;
  for (const { name, dtype, shape } of tensors) {
    const refuse = (message: string) =>
      new GgufError("invalid-argument", `the tensor ${JSON.stringify(name)} cannot be written: ${message}`, {
        tensor: name,
      });
    if (names.has(name)) throw refuse("its name is reserved or stands twice");
    if (/\p{Surrogate}/u.test(name)) throw refuse("it needs a name of whole characters");
    names.add(name);
    const byteLength = safetensorsBytes(dtype, shape);
    if (byteLength === undefined) {
      throw refuse(`pass a type (${safetensorsDtypes}) and a shape, not ${JSON.stringify({ dtype, shape })}`);
    }
    entries.push([name, { dtype, shape, data_offsets: [offset, offset + byteLength] }]);
    sizes.push(byteLength);
    offset += byteLength;
  }
  const header = encodeHeader(entries);
  await writeFileWhole(path, async (write) => {
    await write(header);
    for (const [i, tensor] of tensors.entries()) {
      await writeTensorData(write, tensor, sizes[i]!, `${tensor.dtype} [${tensor.shape.join(", ")}]`);
    }
  });
}

function encodeHeader(entries: readonly [string, unknown][]): Uint8Array {
  const json = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const header = Buffer.alloc(8 + Math.ceil(json.length / alignment) * alignment, " ");
  header.writeBigUInt64LE(BigInt(header.length - 8));
  json.copy(header, 8);
  return header;
}
