import type { AdapterTarget } from "./adapter-slots.js";
import { random } from "./test-random.js";
import { f32Tensor, randomTensor, type Tensor } from "./test-tensors.js";
import type { TinyWeights } from "./test-tiny-model.js";

/** An adapter's part for one tensor, with its values. */
export interface RandomTarget extends AdapterTarget {
  values: { a: Float32Array; b: Float32Array };
}

/** The tensors that adapters of the tiny model may touch. */
export function tinyTensors(weights: TinyWeights): Tensor[] {
  return weights.layers.flatMap(({ q, k, v, attnOutput, gate, up, down }) => [q, k, v, attnOutput, gate, up, down]);
}

/** A random adapter, in float16, that touches some of the tensors. */
export function randomAdapter(tensors: Tensor[], rank: number, seed: number): RandomTarget[] {
  return tensors
    .filter((_, i) => (i * 7 + seed) % 3 !== 0)
    .map(({ name, rows, columns }, i) => {
      const a = randomTensor("a", "F16", rank, columns, 100 * seed + 2 * i);
      const b = randomTensor("b", "F16", rows, rank, 100 * seed + 2 * i + 1);
      return {
        tensor: name,
        rank,
        scale: 2 + (seed % 3),
        a: { type: "F16", data: a.data },
        b: { type: "F16", data: b.data },
        values: { a: a.weights, b: b.weights },
      };
    });
}

/** Random magnitudes of DoRA, near the norms of random rows. */
export function randomMagnitude(rows: number, seed: number): Float32Array {
  const next = random(seed);
  return Float32Array.from({ length: rows }, () => 0.5 + next());
}

/** W + the sum of weight · scale · B A. */
export function mergedTensor(tensor: Tensor, mix: [target: RandomTarget | undefined, weight: number][]): Tensor {
  const { name, rows, columns } = tensor;
  const merged = Float32Array.from(tensor.weights);
  for (const [target, weight] of mix) {
    if (target === undefined) continue;
    const { rank, scale, values } = target;
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        let sum = 0;
        for (let k = 0; k < rank; k++) sum += values.b[r * rank + k]! * values.a[k * columns + c]!;
        merged[r * columns + c]! += weight * scale * sum;
      }
    }
  }
  return f32Tensor(name, rows, columns, merged);
}

/** The weights with every tensor that adapters may touch replaced. */
export function mapTensors(weights: TinyWeights, change: (tensor: Tensor) => Tensor): TinyWeights {
  return {
    ...weights,
    layers: weights.layers.map((layer) => ({
      ...layer,
      q: change(layer.q),
      k: change(layer.k),
      v: change(layer.v),
      attnOutput: change(layer.attnOutput),
      gate: change(layer.gate),
      up: change(layer.up),
      down: change(layer.down),
    })),
  };
}
