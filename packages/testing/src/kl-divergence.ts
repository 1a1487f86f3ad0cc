/**
 * Mean and maximum over positions of KL(reference || ours) in nats, from logits [positions, vocabulary].
 *
 * Softmax and sums are float64. A token that the reference gives no probability (logit -Infinity) adds nothing; NaN in
 * either input makes both results NaN.
 *
 * @throws RangeError when the two lengths differ or are not a positive multiple of `vocabulary`.
 */
export function klDivergence(
  reference: Float32Array | Float64Array,
  ours: Float32Array | Float64Array,
  vocabulary: number,
): { mean: number; max: number } {
  const positions = reference.length / vocabulary;
  if (reference.length !== ours.length || !Number.isInteger(positions) || positions < 1) {
    throw new RangeError(
      `klDivergence needs two [positions, ${vocabulary}] arrays of logits, got ${reference.length} and ${ours.length} values`,
    );
  }
  let sum = 0;
  let max = 0;
  for (let position = 0; position < positions; position++) {
    const from = position * vocabulary;
    const p = logSoftmax(reference, from, vocabulary);
    const q = logSoftmax(ours, from, vocabulary);
    let divergence = 0;
    for (let token = 0; token < vocabulary; token++) {
      const logP = p[token]!;
      if (logP !== Number.NEGATIVE_INFINITY) divergence += Math.exp(logP) * (logP - q[token]!);
    }
    sum += divergence;
    max = Math.max(max, divergence);
  }
  return { mean: sum / positions, max };
}

function logSoftmax(logits: Float32Array | Float64Array, from: number, count: number): Float64Array {
  let max = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < count; i++) max = Math.max(max, logits[from + i]!);
  let total = 0;
  for (let i = 0; i < count; i++) total += Math.exp(logits[from + i]! - max);
  const logTotal = max + Math.log(total);
  return Float64Array.from({ length: count }, (_, i) => logits[from + i]! - logTotal);
}
