/** y = x·Wᵀ for x [rows, columns] and W [outputs, columns]: [rows, outputs], in float64. */
export function multiply(x: Float32Array | Float64Array, w: Float32Array, columns: number): Float64Array {
  const rows = x.length / columns;
  const outputs = w.length / columns;
  const y = new Float64Array(rows * outputs);
  for (let row = 0; row < rows; row++) {
    for (let output = 0; output < outputs; output++) {
      let sum = 0;
      for (let i = 0; i < columns; i++) sum += x[row * columns + i]! * w[output * columns + i]!;
      y[row * outputs + output] = sum;
    }
  }
  return y;
}
