import type { Addon } from "./addon.js";
import { checkInstance, checkInteger, checkObject, checkString, invalid } from "./check.js";
import { MappedFile } from "./mapped-file.js";
import { checkWeightType, type WeightType } from "./weight-type.js";

/** The rows of one tensor as they lie in a file, or in memory (bytes are copied at the call). */
export interface TensorSource {
  /** For errors, such as `blk.3.attn_q.weight`. */
  name: string;
  type: WeightType;
  rows: number;
  /** Weights in a row: a multiple of the type's block. */
  columns: number;
  data: { file: MappedFile; offset: number } | Uint8Array;
}

/** Checks a source against its type and against the bytes it really has; returns it as C++ takes it. */
export function checkSource(argument: string, source: TensorSource): Parameters<Addon["loadVector"]>[0] {
  checkObject(argument, source);
  const name = checkString(`${argument}.name`, source.name);
  const of = `${argument} (${name})`;
  const { id, block, blockBytes } = checkWeightType(`${of}.type`, source.type);
  const rows = checkInteger(`${of}.rows`, source.rows, 1);
  const columns = checkInteger(`${of}.columns`, source.columns, 1);
  if (columns % block !== 0) {
    throw invalid(`${of}.columns`, columns, `rows of type ${source.type} are multiples of ${block} weights`);
  }
  const bytes = rows * (columns / block) * blockBytes;
  const { data } = source;
  if (data instanceof Uint8Array) {
    if (data.byteLength !== bytes) {
      throw invalid(`${of}.data`, data, `${rows} x ${columns} weights of type ${source.type} take ${bytes} bytes`);
    }
    return { name, type: id, rows, data };
  }
  checkObject(`${of}.data`, data);
  const file = checkInstance(`${of}.data.file`, data.file, MappedFile);
  const offset = checkInteger(`${of}.data.offset`, data.offset, 0, Number.MAX_SAFE_INTEGER);
  if (offset + bytes > file.byteLength) {
    throw invalid(
      `${of}.data.offset`,
      offset,
      `${rows} x ${columns} weights of type ${source.type} take ${bytes} bytes, and ${file.path} has ${file.byteLength}`,
    );
  }
  return { name, type: id, rows, data: { file: file.handle, offset } };
}
