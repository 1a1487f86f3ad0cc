import { dequantize, type TensorType } from "@niwaki/gguf";
import { dot, type Matrix } from "./matrix.js";

/** A factor of an adapter, as a file holds it or in float64. */
type Factor = Float64Array | { readonly type: TensorType; readonly data: Uint8Array };

/** What an adapter does to one matrix W: y = W x becomes W x + scale B A x. */
export interface ReferenceTarget {
  /** Name of the matrix in the model's file. */
  readonly tensor: string;
  readonly rank: number;
  readonly scale: number;
  /** [rank, inputs] */
  readonly a: Factor;
  /** [outputs, rank] */
  readonly b: Factor;
  /** DoRA (Liu et al., 2024): each row of W + scale B A is brought to this length. */
  readonly magnitude?: Float32Array | Float64Array;
}

/** An adapter at work. */
export interface ReferenceAdapter {
  readonly targets: Iterable<ReferenceTarget>;
  /** What its contribution is multiplied with; 1 unless given. */
  readonly weight?: number;
}

/** y = W x with all adapters of W. */
export type Project = (matrix: Matrix, x: Float64Array) => Float64Array;

/** How a model with these adapters multiplies. */
export function projection(adapters: readonly ReferenceAdapter[]): Project {
  const changes = adapters.flatMap(({ targets, weight = 1 }) => [...targets].map((target) => ({ target, weight })));
  return (matrix, x) => {
    const base = matrix.multiply(x);
    const y = Float64Array.from(base);
    for (const { target, weight } of changes) {
      if (target.tensor === matrix.name) addChange(y, matrix, x, base, target, weight);
    }
    return y;
  };
}

function addChange(
  y: Float64Array,
  matrix: Matrix,
  x: Float64Array,
  base: Float64Array,
  { tensor, rank, scale, a, b, magnitude }: ReferenceTarget,
  weight: number,
): void {
  const { inputs, outputs } = matrix;
  const down = values(a, rank * inputs, tensor);
  const up = values(b, outputs * rank, tensor);
  const product = multiply(multiply(x, down, inputs), up, rank);
  const factors = magnitude === undefined ? undefined : rowFactors(matrix, down, up, rank, scale, magnitude);
  for (let i = 0; i < y.length; i++) {
    const factor = factors?.[i % outputs] ?? 1;
    y[i]! += weight * ((factor - 1) * base[i]! + factor * scale * product[i]!);
  }
}

/** DoRA: magnitude / |row of W + scale B A|. */
function rowFactors(
  matrix: Matrix,
  down: Float64Array,
  up: Float64Array,
  rank: number,
  scale: number,
  magnitude: Float32Array | Float64Array,
): Float64Array {
  if (magnitude.length !== matrix.outputs) {
    throw new RangeError(`${matrix.name} has ${matrix.outputs} rows, the magnitude ${magnitude.length} values`);
  }
  return Float64Array.from(magnitude, (length, row) => {
    const weights = matrix.rows(row, 1);
    for (let k = 0; k < rank; k++) {
      for (let i = 0; i < matrix.inputs; i++) weights[i]! += scale * up[row * rank + k]! * down[k * matrix.inputs + i]!;
    }
    return length / Math.sqrt(dot(weights, 0, weights, 0, matrix.inputs));
  });
}

/** x Wᵀ for x [n, columns] and W [outputs, columns]. */
function multiply(x: Float64Array, w: Float64Array, columns: number): Float64Array {
  const outputs = w.length / columns;
  return Float64Array.from({ length: (x.length / columns) * outputs }, (_, i) =>
    dot(x, Math.floor(i / outputs) * columns, w, (i % outputs) * columns, columns),
  );
}

function values(factor: Factor, count: number, tensor: string): Float64Array {
  const all = factor instanceof Float64Array ? factor : Float64Array.from(dequantize(factor.type, factor.data, count));
  if (all.length === count) return all;
  throw new RangeError(`a factor of the adapter of ${tensor} has ${all.length} values, not ${count}`);
}
