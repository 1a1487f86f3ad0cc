import { type FileHandle, open, stat } from "node:fs/promises";
import { GgufError } from "./gguf-error.js";

const maxReadBytes = 2 ** 30;

/** Before it is opened, because opening a pipe waits until somebody writes to it. */
export async function checkIsFile(path: string, extension: string): Promise<void> {
  const found = await stat(path).catch((error: unknown) => {
    throw unreadable(path, "opened", error);
  });
  if (!found.isFile())
    throw new GgufError("unreadable", `is no regular file; pass the path of a ${extension} file`, { path });
}

/** Opens `path` for as long as `use` takes. @throws GgufError `unreadable` */
export async function withFile<T>(path: string, use: (file: FileHandle) => Promise<T>): Promise<T> {
  let file: FileHandle;
  try {
    file = await open(path, "r");
  } catch (error) {
    throw unreadable(path, "opened", error);
  }
  try {
    return await use(file);
  } finally {
    await file.close();
  }
}

/** Reads exactly `byteLength` bytes from `offset`. @throws GgufError `unreadable`, `truncated` if the file has shrunk */
export async function readBytes(
  file: FileHandle,
  path: string,
  offset: number,
  byteLength: number,
): Promise<Uint8Array> {
  const bytes = new Uint8Array(byteLength);
  for (let done = 0; done < byteLength; ) {
    const length = Math.min(byteLength - done, maxReadBytes);
    const { bytesRead } = await file.read(bytes, done, length, offset + done).catch((error: unknown) => {
      throw unreadable(path, "read", error);
    });
    if (bytesRead === 0) {
      throw new GgufError("truncated", "the file has become shorter since it was opened; open it again", {
        path,
        offset: offset + done,
      });
    }
    done += bytesRead;
  }
  return bytes;
}

function unreadable(path: string, verb: string, error: unknown): GgufError {
  const reason = error instanceof Error ? error.message : String(error);
  return new GgufError("unreadable", `the file cannot be ${verb}: ${reason}; check the path and its permissions`, {
    path,
    cause: error,
  });
}
