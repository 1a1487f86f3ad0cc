import type { Tensor } from "./test-tensors.js";
import { shape, type TinyWeights } from "./test-tiny-model.js";

type Row = number[];

/** The logits of every position of a sequence, in float64, with nothing paged, packed or rounded. */
export function referenceLogits(weights: TinyWeights, tokens: number[]): Row[] {
  const { hidden, heads, kvHeads, headDim, ffn } = shape;
  let x = tokens.map((token) => [...weights.embedding.weights.subarray(token * hidden, (token + 1) * hidden)]);
  for (const layer of weights.layers) {
    const normed = x.map((row) => rmsNorm(row, layer.attnNorm));
    const headsOf = (matrix: Tensor, count: number, norm?: Tensor) =>
      normed.map((row, position) => {
        const flat = multiply(matrix, row);
        return Array.from({ length: count }, (_, h) => {
          const head = flat.slice(h * headDim, (h + 1) * headDim);
          return norm ? rotate(rmsNorm(head, norm), position) : head;
        });
      });
    const q = headsOf(layer.q, heads, layer.qNorm);
    const k = headsOf(layer.k, kvHeads, layer.kNorm);
    const v = headsOf(layer.v, kvHeads);
    x = x.map((row, i) => {
      const attended = q[i]!.flatMap((query, h) => {
        const kvHead = Math.floor(h / (heads / kvHeads));
        const scores = k.slice(0, i + 1).map((keys) => dot(query, keys[kvHead]!) / Math.sqrt(headDim));
        const weightsOf = softmax(scores);
        return query.map((_, d) => weightsOf.reduce((sum, w, j) => sum + w * v[j]![kvHead]![d]!, 0));
      });
      return add(row, multiply(layer.attnOutput, attended));
    });
    x = x.map((row) => {
      const ffnNormed = rmsNorm(row, layer.ffnNorm);
      const gate = multiply(layer.gate, ffnNormed);
      const up = multiply(layer.up, ffnNormed);
      const inner = Array.from({ length: ffn }, (_, i) => (gate[i]! / (1 + Math.exp(-gate[i]!))) * up[i]!);
      return add(row, multiply(layer.down, inner));
    });
  }
  return x.map((row) => multiply(weights.head, rmsNorm(row, weights.outputNorm)));
}

export function multiply(matrix: Tensor, x: Row): Row {
  const { rows, columns, weights } = matrix;
  return Array.from({ length: rows }, (_, r) => {
    let sum = 0;
    for (let c = 0; c < columns; c++) sum += weights[r * columns + c]! * x[c]!;
    return sum;
  });
}

export function softmax(scores: Row): Row {
  const max = Math.max(...scores);
  const exps = scores.map((s) => Math.exp(s - max));
  const sum = exps.reduce((a, b) => a + b);
  return exps.map((e) => e / sum);
}

/** |actual - expected| / |expected|, Euclidean. */
export function relativeError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let difference = 0;
  let size = 0;
  for (let i = 0; i < expected.length; i++) {
    difference += (actual[i]! - expected[i]!) ** 2;
    size += expected[i]! ** 2;
  }
  return Math.sqrt(difference / size);
}

function rmsNorm(x: Row, weight: Tensor): Row {
  const scale = 1 / Math.sqrt(dot(x, x) / x.length + shape.eps);
  return x.map((value, i) => value * scale * weight.weights[i]!);
}

/** NeoX RoPE: dimension i turns with i + half. */
function rotate(head: Row, position: number): Row {
  const half = head.length / 2;
  return head.map((value, d) => {
    const i = d % half;
    const angle = position * shape.base ** ((-2 * i) / head.length);
    const other = d < half ? -head[d + half]! : head[d - half]!;
    return value * Math.cos(angle) + other * Math.sin(angle);
  });
}

function dot(a: Row, b: Row): number {
  return a.reduce((sum, value, i) => sum + value * b[i]!, 0);
}

function add(a: Row, b: Row): Row {
  return a.map((value, i) => value + b[i]!);
}
