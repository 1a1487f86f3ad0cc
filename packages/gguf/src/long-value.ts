import { HeaderCursor } from "./header-cursor.js";
import type { MetadataPlace } from "./header-layout.js";
import { arrayTypeId, type GgufValue, scalarTypeIds } from "./value-type.js";

/**
 * Reads the array or text at `place`, whose structure has been checked.
 *
 * @throws GgufError `corrupt` if a string in it is not UTF-8
 */
export function readLongValue(header: HeaderCursor, { key, typeId, value }: MetadataPlace): GgufValue {
  const cursor = new HeaderCursor(header.bytes, header.fileSize, header.path);
  cursor.offset = value;
  cursor.subject = { key };
  const what = `the value of metadata key "${key}"`;
  return typeId === arrayTypeId ? readArray(cursor, what) : cursor.string(what);
}

function readArray(cursor: HeaderCursor, what: string): GgufValue[] {
  const typeId = cursor.u32(what);
  const count = cursor.u64(what);
  const values: GgufValue[] = [];
  if (typeId === arrayTypeId) {
    for (let i = 0; i < count; i++) values.push(readArray(cursor, what));
    return values;
  }
  if (typeId === scalarTypeIds.string) {
    const element = `an element of ${what}`;
    for (let i = 0; i < count; i++) values.push(cursor.string(element));
    return values;
  }
  const [size, read] = elementReaders.get(typeId)!;
  for (let i = 0; i < count; i++) values.push(read(cursor.view, cursor.offset + i * size));
  cursor.offset += count * size;
  return values;
}

type ElementReader = (view: DataView, offset: number) => GgufValue;

const elementReaders: ReadonlyMap<number, readonly [size: number, read: ElementReader]> = new Map([
  [scalarTypeIds.uint8, [1, (view, at) => view.getUint8(at)]],
  [scalarTypeIds.int8, [1, (view, at) => view.getInt8(at)]],
  [scalarTypeIds.uint16, [2, (view, at) => view.getUint16(at, true)]],
  [scalarTypeIds.int16, [2, (view, at) => view.getInt16(at, true)]],
  [scalarTypeIds.uint32, [4, (view, at) => view.getUint32(at, true)]],
  [scalarTypeIds.int32, [4, (view, at) => view.getInt32(at, true)]],
  [scalarTypeIds.float32, [4, (view, at) => view.getFloat32(at, true)]],
  [scalarTypeIds.bool, [1, (view, at) => view.getUint8(at) !== 0]],
  [scalarTypeIds.uint64, [8, (view, at) => view.getBigUint64(at, true)]],
  [scalarTypeIds.int64, [8, (view, at) => view.getBigInt64(at, true)]],
  [scalarTypeIds.float64, [8, (view, at) => view.getFloat64(at, true)]],
] as const satisfies readonly (readonly [number, readonly [number, ElementReader]])[]);
