import { LoraError } from "./errors.js";
import { type LoraTarget, matrixValues } from "./lora-target.js";

/** Weights that a change can be added to. */
export type FloatWeights = Float32Array | Float64Array;

interface Merged {
  readonly tensor: string;
  readonly target: LoraTarget | undefined;
  /** DoRA: what each row was multiplied with. */
  readonly factors: Float64Array | undefined;
}

/** The float weights that hold an adapter, and what it takes to get it out of them again. */
export class MergedWeights {
  readonly #merged = new WeakMap<FloatWeights, Merged>();

  /** @param size values that the weights must have; see `LoraAdapter.mergeInto` */
  merge(weights: FloatWeights, target: LoraTarget | undefined, tensor: string, size: number): void {
    checkWeights(weights, tensor, size);
    const held = this.#merged.get(weights);
    if (held !== undefined) throw wrongState(tensor, `these weights hold the adapter already, as ${held.tensor}`);
    const factors = target === undefined ? undefined : mergeTarget(weights, target);
    this.#merged.set(weights, { tensor, target, factors });
  }

  unmerge(weights: FloatWeights, tensor: string): void {
    const held = this.#merged.get(weights);
    if (held === undefined) throw wrongState(tensor, "these weights do not hold the adapter");
    if (held.tensor !== tensor) throw wrongState(tensor, `these weights hold the adapter as ${held.tensor}`);
    const { target, factors } = held;
    if (target !== undefined) {
      const { inputs } = target;
      if (factors !== undefined)
        for (let i = 0; i < weights.length; i++) weights[i]! /= factors[Math.floor(i / inputs)]!;
      addProduct(weights, target, -target.scale, 0);
    }
    this.#merged.delete(weights);
  }
}

/**
 * W ← W + scale · B·A, and for a DoRA each row to the length that its magnitude says.
 *
 * @param weights rows of W, as many as there are
 * @param first the row of W that they begin with
 * @returns a DoRA's factor of each row
 */
export function mergeTarget(weights: FloatWeights, target: LoraTarget, first = 0): Float64Array | undefined {
  const { inputs, scale, magnitude, tensor } = target;
  if (magnitude === undefined) {
    addProduct(weights, target, scale, first);
    return undefined;
  }
  // The lengths are those of the unrounded sum, on a copy: an error must not leave the weights half merged.
  const sum = Float64Array.from(weights);
  addProduct(sum, target, scale, first);
  const lengths = magnitude.subarray(first, first + weights.length / inputs);
  const factors = Float64Array.from(lengths, (length, row) => {
    const factor = length / norm(sum, row * inputs, inputs);
    if (Number.isFinite(factor) && factor !== 0) return factor;
    throw new LoraError(
      "invalid-argument",
      `row ${first + row} of ${tensor} cannot be brought to the magnitude ${length}: it would be lost`,
      { tensor, value: length },
    );
  });
  for (let i = 0; i < weights.length; i++) weights[i] = sum[i]! * factors[Math.floor(i / inputs)]!;
  return factors;
}

function addProduct(weights: FloatWeights, { a, b, rank, inputs }: LoraTarget, scale: number, first: number): void {
  const [left, right] = [matrixValues(b), matrixValues(a)];
  const row = new Float64Array(inputs);
  for (let output = 0; output < weights.length / inputs; output++) {
    row.fill(0);
    for (let k = 0; k < rank; k++) {
      const factor = left[(first + output) * rank + k]!;
      for (let i = 0; i < inputs; i++) row[i]! += factor * right[k * inputs + i]!;
    }
    for (let i = 0; i < inputs; i++) weights[output * inputs + i]! += scale * row[i]!;
  }
}

function norm(values: Float64Array, from: number, count: number): number {
  let sum = 0;
  for (let i = from; i < from + count; i++) sum += values[i]! * values[i]!;
  return Math.sqrt(sum);
}

function checkWeights(weights: unknown, tensor: string, size: number): void {
  if (!(weights instanceof Float32Array || weights instanceof Float64Array)) {
    throw quantizedWeights(tensor, "merge it into a Float32Array; `requantizeMerged` does that and says what is lost");
  }
  if (weights.length === size) return;
  throw new LoraError("invalid-argument", `${tensor} has ${size} weights, but ${weights.length} were given`, {
    tensor,
    value: weights.length,
  });
}

/** The error for weights that are to hold an adapter and are not floats. */
export function quantizedWeights(tensor: string, wayOut: string): LoraError {
  return new LoraError(
    "quantized-weights",
    `${tensor}: an adapter is merged into float weights. Quantized ones cannot take it: a 1-bit weight is one of two ` +
      "values, and what a LoRA adds is smaller than the step between them. Apply the adapter beside them, or " +
      wayOut,
    { tensor },
  );
}

function wrongState(tensor: string, message: string): LoraError {
  return new LoraError("merge-state", `${tensor}: ${message}; keep one array of weights per module, merged once`, {
    tensor,
  });
}
