import { GgufError } from "./gguf-error.js";
import { arrayTypeId, fixedSizes, type ScalarType, scalarTypeIds } from "./value-type.js";

type Scalar = string | number | bigint | boolean;

/**
 * A metadata value to write. Plain values get the usual type: strings `string`, booleans `bool`, integers the first of
 * `uint32`, `int32`, `int64` that holds them, other numbers `float32`; a plain array has the one type that holds all its
 * elements. `{ type, value }` names the type, `{ type: "int32[]", value: [] }` an array's.
 */
export type WriteValue =
  | string
  | number
  | boolean
  | readonly string[]
  | readonly number[]
  | readonly boolean[]
  | { readonly type: ScalarType; readonly value: Scalar }
  | { readonly type: `${ScalarType}[]`; readonly value: readonly Scalar[] };

/**
 * The bytes of a metadata entry: key, type and value.
 *
 * @throws GgufError `invalid-argument` if the key is not printable ASCII or the value does not fit its type
 */
export function encodeEntry(key: string, value: WriteValue): Uint8Array {
  if (!/^[\x20-\x7e]{1,65535}$/.test(key)) {
    throw refuse(key, "the format allows 1 to 65535 printable ASCII characters as a key");
  }
  if (key === "__proto__") throw refuse(key, "JavaScript programs cannot read it back");
  if (isTyped(value)) {
    const isArray = value.type.endsWith("[]");
    const type = (isArray ? value.type.slice(0, -2) : value.type) as ScalarType;
    if (!Object.hasOwn(scalarTypeIds, type)) throw refuse(key, `there is no type ${JSON.stringify(value.type)}`);
    if (isArray !== Array.isArray(value.value)) {
      throw refuse(key, `the type ${value.type} needs ${isArray ? "an array" : "a single value"}`);
    }
    return entry(key, type, value.value);
  }
  return entry(key, defaultType(key, value), value);
}

/** The bytes of a string: its length in bytes as a uint64, then UTF-8. */
export function encodeString(text: string): Buffer {
  const bytes = Buffer.alloc(8 + Buffer.byteLength(text));
  bytes.writeBigUInt64LE(BigInt(bytes.length - 8));
  bytes.write(text, 8);
  return bytes;
}

function isTyped(value: WriteValue): value is Extract<WriteValue, { type: unknown }> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function entry(key: string, type: ScalarType, value: Scalar | readonly Scalar[]): Uint8Array {
  const head = [encodeString(key)];
  if (!Array.isArray(value))
    return Buffer.concat([...head, u32(scalarTypeIds[type]), encodeScalar(key, type, value as Scalar)]);
  const count = Buffer.alloc(8);
  count.writeBigUInt64LE(BigInt(value.length));
  head.push(u32(arrayTypeId), u32(scalarTypeIds[type]), count);
  if (type === "string") return Buffer.concat([...head, encodeStrings(key, value)]);
  return Buffer.concat([...head, ...value.map((element: Scalar) => encodeScalar(key, type, element))]);
}

/** The elements of an array in one buffer, sized first: a vocabulary has 300,000. */
function encodeStrings(key: string, values: readonly Scalar[]): Buffer {
  let size = 0;
  for (const value of values) {
    if (typeof value !== "string") throw refuse(key, `${show(value)} is no string`);
    checkText(key, value);
    size += 8 + Buffer.byteLength(value);
  }
  const bytes = Buffer.alloc(size);
  let offset = 0;
  for (const value of values as readonly string[]) {
    const length = bytes.write(value, offset + 8);
    bytes.writeBigUInt64LE(BigInt(length), offset);
    offset += 8 + length;
  }
  return bytes;
}

function checkText(key: string, text: string): void {
  if (/\p{Surrogate}/u.test(text)) throw refuse(key, "the text has half a surrogate pair, which UTF-8 cannot hold");
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function defaultType(
  key: string,
  value: string | number | boolean | readonly (string | number | boolean)[],
): ScalarType {
  const values = Array.isArray(value) ? (value as readonly (string | number | boolean)[]) : [value];
  const [first] = values;
  if (values.some((element) => typeof element !== typeof first))
    throw refuse(key, "an array's elements must be of one type");
  if (typeof first === "string") return "string";
  if (typeof first === "boolean") return "bool";
  if (typeof first !== "number") {
    throw refuse(
      key,
      `${first === undefined ? "an empty array" : typeof first} says no type; write { type: "int32[]", value: [] }`,
    );
  }
  const numbers = values as readonly number[];
  if (!numbers.every(Number.isInteger)) return "float32";
  return (["uint32", "int32", "int64"] as const).find((type) => numbers.every((n) => inRange(type, n))) ?? unsafe(key);
}

function unsafe(key: string): never {
  throw refuse(key, 'an integer is beyond 53 bits; pass a bigint as { type: "uint64", value: 1n } or a "float64"');
}

function inRange(type: ScalarType, value: number): boolean {
  const [low, high] = integerRanges.get(type)!;
  return Number.isSafeInteger(value) && value >= low && value <= high;
}

const integerRanges: ReadonlyMap<ScalarType, readonly [low: bigint, high: bigint]> = new Map([
  ["uint8", [0n, 2n ** 8n - 1n]],
  ["int8", [-(2n ** 7n), 2n ** 7n - 1n]],
  ["uint16", [0n, 2n ** 16n - 1n]],
  ["int16", [-(2n ** 15n), 2n ** 15n - 1n]],
  ["uint32", [0n, 2n ** 32n - 1n]],
  ["int32", [-(2n ** 31n), 2n ** 31n - 1n]],
  ["uint64", [0n, 2n ** 64n - 1n]],
  ["int64", [-(2n ** 63n), 2n ** 63n - 1n]],
]);

function encodeScalar(key: string, type: ScalarType, value: Scalar): Buffer {
  const range = integerRanges.get(type);
  if (range !== undefined) return encodeInteger(key, type, value, range);
  if (type === "string" && typeof value === "string") {
    checkText(key, value);
    return encodeString(value);
  }
  const bytes = Buffer.alloc(fixedSizes.get(scalarTypeIds[type]) ?? 0);
  if (type === "bool" && typeof value === "boolean") bytes.writeUInt8(value ? 1 : 0);
  else if (type === "float32" && typeof value === "number") bytes.writeFloatLE(value);
  else if (type === "float64" && typeof value === "number") bytes.writeDoubleLE(value);
  else throw refuse(key, `${show(value)} is no ${type}`);
  return bytes;
}

function encodeInteger(key: string, type: ScalarType, value: Scalar, [low, high]: readonly [bigint, bigint]): Buffer {
  const isInteger = typeof value === "bigint" || Number.isSafeInteger(value);
  if (!isInteger || BigInt(value) < low || BigInt(value) > high) {
    throw refuse(key, `${show(value)} is no ${type} (an integer from ${low} to ${high})`);
  }
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)));
  return bytes.subarray(0, fixedSizes.get(scalarTypeIds[type]));
}

function show(value: unknown): string {
  return typeof value === "string" ? JSON.stringify(value.slice(0, 40)) : String(value);
}

function refuse(key: string, message: string): GgufError {
  return new GgufError("invalid-argument", `the metadata key ${show(key)} cannot be written: ${message}`, { key });
}
