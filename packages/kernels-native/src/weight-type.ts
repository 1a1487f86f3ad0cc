import { invalid } from "./check.js";

/** How the weights of a tensor are stored. `Q2_0` has blocks of 64 weights, `Q2_0_G128` (PQ2_0 in some files) of 128. */
export type WeightType = "F32" | "F16" | "BF16" | "Q8_0" | "Q4_0" | "Q1_0" | "Q2_0" | "Q2_0_G128";

interface Layout {
  /** The number that C++ knows the type by. */
  id: number;
  /** Weights in a block; a row's length is a multiple of it. */
  block: number;
  blockBytes: number;
}

const layouts: Readonly<Record<WeightType, Layout>> = {
  F32: { id: 0, block: 1, blockBytes: 4 },
  F16: { id: 1, block: 1, blockBytes: 2 },
  BF16: { id: 2, block: 1, blockBytes: 2 },
  Q8_0: { id: 3, block: 32, blockBytes: 34 },
  Q4_0: { id: 4, block: 32, blockBytes: 18 },
  Q1_0: { id: 5, block: 128, blockBytes: 18 },
  Q2_0: { id: 6, block: 64, blockBytes: 18 },
  Q2_0_G128: { id: 7, block: 128, blockBytes: 34 },
};

export function checkWeightType(argument: string, type: WeightType): Layout {
  if (!Object.hasOwn(layouts, type)) {
    throw invalid(argument, type, `it must be one of ${Object.keys(layouts).join(", ")}`);
  }
  return layouts[type];
}
