import { randomUUID } from "node:crypto";
import { open, rename, rm } from "node:fs/promises";
import { GgufError } from "./gguf-error.js";

/** A tensor's bytes, whole or in pieces of any size; pieces are asked for one after another as the file is written. */
export type TensorData = Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

/** Appends bytes to the file being written. */
type Write = (bytes: Uint8Array) => Promise<void>;

/**
 * Writes a file that appears under `path` when `produce` is done, in place of an older one; on failure nothing is left
 * behind.
 *
 * @throws GgufError `unwritable`; whatever `produce` throws
 */
export async function writeFileWhole(path: string, produce: (write: Write) => Promise<void>): Promise<void> {
  const temporary = `${path}.${randomUUID()}.tmp`;
  const file = await io(path, open(temporary, "wx"));
  try {
    try {
      await produce(async (bytes) => {
        for (let done = 0; done < bytes.byteLength; ) {
          const { bytesWritten } = await io(path, file.write(bytes, done));
          done += bytesWritten;
        }
      });
    } finally {
      await file.close();
    }
    await io(path, rename(temporary, path));
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

/**
 * Writes a tensor's data piece by piece.
 *
 * @param layout what says that the tensor takes `byteLength` bytes
 * @throws GgufError `invalid-argument` if there are more or fewer
 */
export async function writeTensorData(
  write: Write,
  { name, data }: { readonly name: string; readonly data: TensorData },
  byteLength: number,
  layout: string,
): Promise<void> {
  let written = 0;
  for await (const piece of data instanceof Uint8Array ? [data] : data) {
    written += piece.byteLength;
    if (written > byteLength) break;
    await write(piece);
  }
  if (written !== byteLength) {
    const found = written > byteLength ? `at least ${written}` : `${written}`;
    throw new GgufError(
      "invalid-argument",
      `the tensor "${name}" has ${found} bytes of data, but ${layout} takes ${byteLength}`,
      { tensor: name },
    );
  }
}

async function io<T>(path: string, operation: Promise<T>): Promise<T> {
  try {
    return await operation;
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new GgufError("unwritable", `the file cannot be written: ${reason}; check the folder and the free space`, {
      path,
      cause: error,
    });
  }
}
