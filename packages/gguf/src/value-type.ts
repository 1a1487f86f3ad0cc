/** Types of a single metadata value, by their names in the GGUF specification. */
export type ScalarType =
  | "uint8"
  | "int8"
  | "uint16"
  | "int16"
  | "uint32"
  | "int32"
  | "float32"
  | "bool"
  | "string"
  | "uint64"
  | "int64"
  | "float64";

/** The specification's ids of metadata value types; `arrayTypeId` stands between `string` and `uint64`. */
export const scalarTypeIds: Readonly<Record<ScalarType, number>> = {
  uint8: 0,
  int8: 1,
  uint16: 2,
  int16: 3,
  uint32: 4,
  int32: 5,
  float32: 6,
  bool: 7,
  string: 8,
  uint64: 10,
  int64: 11,
  float64: 12,
};

export const arrayTypeId = 9;

/** Bytes of one value by type id; strings and arrays, which have a length of their own, are absent. */
export const fixedSizes: ReadonlyMap<number, number> = new Map([
  [scalarTypeIds.uint8, 1],
  [scalarTypeIds.int8, 1],
  [scalarTypeIds.uint16, 2],
  [scalarTypeIds.int16, 2],
  [scalarTypeIds.uint32, 4],
  [scalarTypeIds.int32, 4],
  [scalarTypeIds.float32, 4],
  [scalarTypeIds.bool, 1],
  [scalarTypeIds.uint64, 8],
  [scalarTypeIds.int64, 8],
  [scalarTypeIds.float64, 8],
]);

/** A metadata value as read: 64-bit integers are bigints, arrays are plain arrays. */
export type GgufValue = string | number | bigint | boolean | GgufValue[];
