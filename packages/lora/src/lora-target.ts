import { dequantize } from "@niwaki/gguf";
import { LoraError } from "./errors.js";
import type { PlannedTarget } from "./lora-config.js";

/** How the values of A and B are kept. */
export type LoraType = "F32" | "F16" | "BF16";

/** Bytes of a value. */
export const typeBytes: Readonly<Record<LoraType, number>> = { F32: 4, F16: 2, BF16: 2 };

/** A or B as it stands in its file: little-endian, rows one after another. */
export interface LoraMatrix {
  readonly type: LoraType;
  readonly data: Uint8Array;
}

/** One adapted module: y = W·x becomes W·x + scale · B·A·x. */
export interface LoraTarget extends PlannedTarget {
  /** [rank, inputs] */
  readonly a: LoraMatrix;
  /** [outputs, rank] */
  readonly b: LoraMatrix;
  /** DoRA: the length that each of the `outputs` rows of W + scale · B·A is brought to. */
  readonly magnitude?: Float32Array;
}

/** What a target is made of, and how errors name it. */
export interface TargetWeights {
  readonly a: LoraMatrix | Float32Array;
  readonly b: LoraMatrix | Float32Array;
  readonly magnitude?: Float32Array | undefined;
  /** Names of the tensors in their file; derived from the base's tensor where they are not given. */
  readonly names?: { readonly a: string; readonly b: string; readonly magnitude: string };
}

/**
 * A planned target with its weights, whose sizes and values are checked.
 *
 * @throws LoraError `wrong-type`, `wrong-shape`, `not-finite` or `missing-tensor`, naming the tensor
 */
export function checkedTarget(planned: PlannedTarget, weights: TargetWeights, useDora: boolean): LoraTarget {
  const { tensor, inputs, outputs, rank } = planned;
  const names = weights.names ?? { a: `${tensor}.lora_a`, b: `${tensor}.lora_b`, magnitude: `${tensor}.magnitude` };
  const a = checkedMatrix(weights.a, rank, inputs, names.a);
  const b = checkedMatrix(weights.b, outputs, rank, names.b);
  const { magnitude } = weights;
  if (!useDora) {
    if (magnitude === undefined) return { ...planned, a, b };
    throw new LoraError("unknown-tensor", `${names.magnitude} is DoRA's, but the configuration does not say use_dora`, {
      tensor: names.magnitude,
    });
  }
  if (magnitude === undefined) {
    throw new LoraError("missing-tensor", `${names.magnitude} is missing: each target of a DoRA has a magnitude`, {
      tensor: names.magnitude,
    });
  }
  checkedMatrix(magnitude, outputs, 1, names.magnitude);
  return { ...planned, a, b, magnitude };
}

/** The values of A or B. */
export function matrixValues({ type, data }: LoraMatrix): Float32Array {
  return dequantize(type, data, data.byteLength / typeBytes[type]);
}

function checkedMatrix(matrix: LoraMatrix | Float32Array, rows: number, columns: number, name: string): LoraMatrix {
  const { type, data }: LoraMatrix =
    matrix instanceof Float32Array
      ? { type: "F32", data: new Uint8Array(matrix.buffer, matrix.byteOffset, matrix.byteLength) }
      : matrix;
  if (!Object.hasOwn(typeBytes, type)) {
    throw new LoraError("wrong-type", `${name} is of type ${type}; F32, F16 and BF16 can be applied`, {
      tensor: name,
      value: type,
    });
  }
  const size = rows * columns * typeBytes[type];
  if (data.byteLength !== size) {
    throw new LoraError(
      "wrong-shape",
      `${name} has ${data.byteLength} bytes; ${type} [${rows}, ${columns}] takes ${size}`,
      {
        tensor: name,
        value: data.byteLength,
      },
    );
  }
  const at = firstNotFinite(type, data);
  if (at < 0) return { type, data };
  const place = `row ${Math.floor(at / columns)}, column ${at % columns}`;
  throw new LoraError("not-finite", `${name} has an infinite value or NaN at ${place}; its training has diverged`, {
    tensor: name,
    value: at,
  });
}

/** The exponent's bits, all ones in infinities and NaN. */
const exponents: Readonly<Record<LoraType, number>> = { F32: 0x7f800000, F16: 0x7c00, BF16: 0x7f80 };

function firstNotFinite(type: LoraType, data: Uint8Array): number {
  const aligned = data.byteOffset % 4 === 0 ? data : Uint8Array.from(data); // Views of wider numbers must be.
  const count = data.byteLength / typeBytes[type];
  const { buffer, byteOffset } = aligned;
  const bits = type === "F32" ? new Uint32Array(buffer, byteOffset, count) : new Uint16Array(buffer, byteOffset, count);
  const exponent = exponents[type];
  for (let i = 0; i < count; i++) if ((bits[i]! & exponent) === exponent) return i;
  return -1;
}
