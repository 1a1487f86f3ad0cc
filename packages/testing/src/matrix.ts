import { dequantize, type GgufFile, type TensorType, tensorTypes } from "@niwaki/gguf";

/** Rows that are dequantized at a time: their floats stay in the cache and the whole matrix is never in memory. */
const stripeRows = 64;

/** A weight `W` [outputs, inputs] in the type of its file. */
export class Matrix {
  /** Its tensor in the file. */
  readonly name: string;
  readonly inputs: number;
  readonly outputs: number;
  readonly #type: TensorType;
  readonly #bytes: Uint8Array;
  readonly #rowBytes: number;

  private constructor(name: string, inputs: number, outputs: number, type: TensorType, bytes: Uint8Array) {
    this.name = name;
    this.inputs = inputs;
    this.outputs = outputs;
    this.#type = type;
    this.#bytes = bytes;
    const { blockSize, blockBytes } = tensorTypes[type];
    this.#rowBytes = (inputs / blockSize) * blockBytes;
  }

  /** @throws Error when the tensor has another shape or a type that cannot be dequantized. */
  static async read(file: GgufFile, name: string, inputs: number, outputs: number): Promise<Matrix> {
    const tensor = file.tensor(name);
    if (tensor.dims.length !== 2 || tensor.dims[0] !== inputs || tensor.dims[1] !== outputs) {
      throw new Error(`${file.path}: ${name} has dimensions [${tensor.dims}], expected [${[inputs, outputs]}]`);
    }
    if (tensor.type === null) throw new Error(`${file.path}: ${name} has type ${tensor.typeName}`);
    return new Matrix(name, inputs, outputs, tensor.type, await file.readTensor(name));
  }

  /** `count` rows from `first`, dequantized: [count, inputs]. */
  rows(first: number, count: number): Float64Array {
    const bytes = this.#bytes.subarray(first * this.#rowBytes, (first + count) * this.#rowBytes);
    return Float64Array.from(dequantize(this.#type, bytes, count * this.inputs));
  }

  /** y = x Wᵀ for x [n, inputs]: [n, outputs]. */
  multiply(x: Float64Array): Float64Array {
    const { inputs, outputs } = this;
    const n = x.length / inputs;
    const y = new Float64Array(n * outputs);
    for (let first = 0; first < outputs; first += stripeRows) {
      const count = Math.min(stripeRows, outputs - first);
      const weights = this.rows(first, count);
      // Four rows of x at a time, so that each weight is loaded once for four products.
      let t = 0;
      for (; t + 4 <= n; t += 4) {
        for (let o = 0; o < count; o++)
          dotFour(weights, o * inputs, x, t * inputs, inputs, y, t * outputs + first + o, outputs);
      }
      for (; t < n; t++) {
        for (let o = 0; o < count; o++) {
          y[t * outputs + first + o] = dot(weights, o * inputs, x, t * inputs, inputs);
        }
      }
    }
    return y;
  }
}

function dotFour(
  w: Float64Array,
  wFrom: number,
  x: Float64Array,
  xFrom: number,
  inputs: number,
  y: Float64Array,
  yFrom: number,
  yStride: number,
): void {
  const x1 = xFrom + inputs;
  const x2 = x1 + inputs;
  const x3 = x2 + inputs;
  let a = 0;
  let b = 0;
  let c = 0;
  let d = 0;
  for (let i = 0; i < inputs; i++) {
    const weight = w[wFrom + i]!;
    a += weight * x[xFrom + i]!;
    b += weight * x[x1 + i]!;
    c += weight * x[x2 + i]!;
    d += weight * x[x3 + i]!;
  }
  y[yFrom] = a;
  y[yFrom + yStride] = b;
  y[yFrom + 2 * yStride] = c;
  y[yFrom + 3 * yStride] = d;
}

/** Inner product of `count` values from `aFrom` in `a` and from `bFrom` in `b`. */
export function dot(a: Float64Array, aFrom: number, b: Float64Array, bFrom: number, count: number): number {
  let sum = 0;
  for (let i = 0; i < count; i++) sum += a[aFrom + i]! * b[bFrom + i]!;
  return sum;
}
