import { checkMultiple, checkNumber, checkObject, invalid } from "./check.js";

/**
 * NeoX rotary embedding: dimension i turns with i + headDim/2 by position * base^(-2i/headDim). `linear` divides positions
 * by the factor; `yarn` interpolates the frequencies (Peng et al., 2023) and scales cos and sin by `attentionFactor`.
 */
export interface RopeOptions {
  /** A multiple of 16. */
  headDim: number;
  base: number;
  scaling?:
    | { type: "linear"; factor: number }
    | {
        type: "yarn";
        factor: number;
        originalContext: number;
        /** 32 unless given. */
        betaFast?: number;
        /** 1 unless given. */
        betaSlow?: number;
        /** 0.1 ln(factor) + 1 unless given. */
        attentionFactor?: number;
      };
}

/** Checks the options and returns them as C++ takes them. */
export function checkRope(rope: RopeOptions) {
  checkObject("rope", rope);
  const spec = {
    headDim: checkMultiple("rope.headDim", rope.headDim, 16),
    base: positive("rope.base", rope.base),
    scaling: 0,
    factor: 1,
    originalContext: 0,
    betaFast: 32,
    betaSlow: 1,
    attentionFactor: 1,
  };
  const { scaling } = rope;
  if (scaling === undefined) return spec;
  checkObject("rope.scaling", scaling);
  const factor = checkNumber("rope.scaling.factor", scaling.factor, "at least 1", (x) => x >= 1 && x < Infinity);
  switch (scaling.type) {
    case "linear":
      return { ...spec, scaling: 1, factor };
    case "yarn": {
      const betaFast = positive("rope.scaling.betaFast", scaling.betaFast ?? 32);
      const betaSlow = positive("rope.scaling.betaSlow", scaling.betaSlow ?? 1);
      if (betaSlow > betaFast)
        throw invalid("rope.scaling.betaSlow", betaSlow, `it must be at most betaFast, ${betaFast}`);
      return {
        ...spec,
        scaling: 2,
        factor,
        originalContext: positive("rope.scaling.originalContext", scaling.originalContext),
        betaFast,
        betaSlow,
        attentionFactor: positive(
          "rope.scaling.attentionFactor",
          scaling.attentionFactor ?? 0.1 * Math.log(factor) + 1,
        ),
      };
    }
    default:
      throw invalid("rope.scaling.type", (scaling as { type: unknown }).type, 'it must be "linear" or "yarn"');
  }
}

function positive(argument: string, value: number): number {
  return checkNumber(argument, value, "a positive number", (x) => x > 0 && x < Infinity);
}
