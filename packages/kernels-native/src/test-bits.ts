/** The first index where two arrays differ in any bit (their lengths count too), or -1; quicker than toEqual. */
export function firstDifference(a: Float32Array, b: Float32Array): number {
  const [x, y] = [a, b].map((array) => new Uint32Array(array.buffer, array.byteOffset, array.length)) as [
    Uint32Array,
    Uint32Array,
  ];
  for (let i = 0; i < Math.max(x.length, y.length); i++) if (x[i] !== y[i]) return i;
  return -1;
}
