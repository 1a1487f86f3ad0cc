import { dequantize, quantize, type TensorType } from "@niwaki/gguf";
import { LoraError } from "./errors.js";
import type { LoraTarget } from "./lora-target.js";
import { mergeTarget } from "./merge.js";

/** Weights with an adapter merged into them, quantized anew, and what that cost. */
export interface RequantizedWeights {
  /** [outputs, inputs] in the type that was asked for. */
  readonly data: Uint8Array;
  /** Root mean square of the change that the adapter makes to the weights. */
  readonly change: number;
  /** Root mean square of what the new weights differ from the merged ones. */
  readonly error: number;
  /** error / change: from 1 on, quantizing takes away as much as the adapter brought. */
  readonly relativeError: number;
}

/**
 * Merges an adapter's target into a float copy of a tensor and quantizes the sum as `type`. This is a conversion with a
 * loss, which it reports: in one or two bits per weight hardly anything of an adapter is left.
 *
 * @param weights the base's tensor [outputs, inputs] in the type of its file
 * @throws LoraError `invalid-argument` for weights of another size; GgufError where `type` cannot hold the sum
 */
export function requantizeMerged(
  weights: { readonly type: TensorType; readonly data: Uint8Array },
  target: LoraTarget,
  type: TensorType,
): RequantizedWeights {
  const { inputs, outputs, tensor } = target;
  const count = inputs * outputs;
  const base = dequantized(weights, count, tensor);
  const merged = Float32Array.from(base);
  mergeTarget(merged, target);
  const data = quantize(type, merged);
  const change = rootMeanSquare(merged, base);
  const error = rootMeanSquare(dequantize(type, data, count), merged);
  return {
    data,
    change,
    error,
    relativeError: relative(error, change),
  };
}

/** error / change; without a change any error is infinitely large. */
export function relative(error: number, change: number): number {
  return change === 0 && error === 0 ? 0 : error / change;
}

function dequantized(
  { type, data }: { type: TensorType; data: Uint8Array },
  count: number,
  tensor: string,
): Float32Array {
  try {
    return dequantize(type, data, count);
  } catch (cause) {
    throw new LoraError(
      "invalid-argument",
      `${tensor} cannot be merged: ${cause instanceof Error ? cause.message : cause}`,
      {
        tensor,
        cause,
      },
    );
  }
}

function rootMeanSquare(x: Float32Array, y: Float32Array): number {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += (x[i]! - y[i]!) ** 2;
  return Math.sqrt(sum / x.length);
}
