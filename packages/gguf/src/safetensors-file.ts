import { checkIsFile, readBytes, withFile } from "./file-bytes.js";
import { GgufError } from "./gguf-error.js";
import {
  headerLength,
  parseSafetensorsHeader,
  type SafetensorsHeader,
  type SafetensorsTensor,
} from "./safetensors-header.js";

/** A safetensors file's tensors. The file is open only while something is read from it: there is nothing to close. */
export class SafetensorsFile {
  readonly path: string;
  /** Size of the file in bytes. */
  readonly byteLength: number;
  /** The texts under `__metadata__`; empty where there are none. */
  readonly metadata: ReadonlyMap<string, string>;
  /** All tensors by name, in the order of the header. */
  readonly tensors: ReadonlyMap<string, SafetensorsTensor>;

  private constructor(path: string, byteLength: number, header: SafetensorsHeader) {
    this.path = path;
    this.byteLength = byteLength;
    this.metadata = header.metadata;
    this.tensors = header.tensors;
  }

  /**
   * Opens a safetensors file and reads its header only. Its length, and every shape, type and offset in it, is checked
   * against the file's true size.
   *
   * @throws GgufError with the byte offset or the tensor, if the file is not sound
   */
  static async open(path: string): Promise<SafetensorsFile> {
    await checkIsFile(path, ".safetensors");
    return await withFile(path, async (file) => {
      const { size } = await file.stat();
      const length = headerLength(await readBytes(file, path, 0, Math.min(8, size)), size, path);
      const header = await readBytes(file, path, 8, length);
      return new SafetensorsFile(path, size, parseSafetensorsHeader(header, size, path));
    });
  }

  /** The tensor called `name`. @throws GgufError `missing-tensor` */
  tensor(name: string): SafetensorsTensor {
    const tensor = this.tensors.get(name);
    if (tensor !== undefined) return tensor;
    throw new GgufError(
      "missing-tensor",
      `the tensor "${name}" is missing (the file has ${this.tensors.size} others); use a complete file`,
      { path: this.path, tensor: name },
    );
  }

  /** Reads the bytes of the tensor called `name`, little-endian, rows one after another. @throws GgufError `missing-tensor` */
  async readTensor(name: string): Promise<Uint8Array> {
    const { offset, byteLength } = this.tensor(name);
    return await withFile(this.path, (file) => readBytes(file, this.path, offset, byteLength));
  }
}
