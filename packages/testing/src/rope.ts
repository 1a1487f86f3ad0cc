/** How the rotary frequencies of a file are stretched for contexts longer than the trained one. */
export type RopeScaling =
  | { type: "none" }
  | { type: "linear"; factor: number }
  | { type: "yarn"; factor: number; originalContext: number; betaFast: number; betaSlow: number };

/** Rotary position embedding (Su et al., 2021) in the NeoX form: dimension i rotates with i + headDim / 2. */
export class Rope {
  readonly #frequencies: Float64Array;
  readonly #magnitude: number;
  readonly #headDim: number;

  constructor(headDim: number, base: number, scaling: RopeScaling) {
    this.#headDim = headDim;
    this.#frequencies = frequencies(headDim, base, scaling);
    this.#magnitude = scaling.type === "yarn" ? 0.1 * Math.log(scaling.factor) + 1 : 1;
  }

  /** Rotates the heads of x [tokens, heads * headDim] in place; row t stands at position t. */
  apply(x: Float64Array, heads: number): void {
    const half = this.#headDim / 2;
    const width = heads * this.#headDim;
    for (let position = 0; position * width < x.length; position++) {
      for (let i = 0; i < half; i++) {
        const angle = position * this.#frequencies[i]!;
        const cos = Math.cos(angle) * this.#magnitude;
        const sin = Math.sin(angle) * this.#magnitude;
        for (let head = 0; head < heads; head++) {
          const at = position * width + head * this.#headDim + i;
          const low = x[at]!;
          const high = x[at + half]!;
          x[at] = low * cos - high * sin;
          x[at + half] = high * cos + low * sin;
        }
      }
    }
  }
}

/** Radians per position of each of the headDim / 2 pairs. */
function frequencies(headDim: number, base: number, scaling: RopeScaling): Float64Array {
  const plain = Float64Array.from({ length: headDim / 2 }, (_, i) => base ** ((-2 * i) / headDim));
  if (scaling.type === "none") return plain;
  if (scaling.type === "linear") return plain.map((frequency) => frequency / scaling.factor);

  // YaRN (Peng et al., 2023), section 3.2: pairs that turn more than betaFast times in the original context keep their
  // frequency, those that turn less than betaSlow times are interpolated, and a ramp over the pair index joins the two.
  const pairTurning = (turns: number) =>
    (headDim * Math.log(scaling.originalContext / (turns * 2 * Math.PI))) / (2 * Math.log(base));
  const low = Math.max(Math.floor(pairTurning(scaling.betaFast)), 0);
  const high = Math.min(Math.ceil(pairTurning(scaling.betaSlow)), headDim - 1);
  return plain.map((frequency, i) => {
    const ramp = Math.min(Math.max((i - low) / Math.max(high - low, 0.001), 0), 1);
    return frequency * (1 - ramp) + (frequency / scaling.factor) * ramp;
  });
}
