import type { GgufFile } from "@niwaki/gguf";
import { LoraError } from "./errors.js";
import { type LoraModule, loraModules, tensorName } from "./modules.js";

/** What an adapter must know of the model it adapts. */
export interface BaseShape {
  /** As GGUF names it: `qwen3`. */
  readonly architecture: string;
  readonly layers: number;
  /** Inputs and outputs of each projection: `[in, out]`, in grouped-query attention fewer `out` for `k_proj` and `v_proj`. */
  readonly modules: Readonly<Record<LoraModule, readonly [inputs: number, outputs: number]>>;
}

/**
 * The shape of the model in a GGUF, from its header alone.
 *
 * @throws LoraError `wrong-base` if its layers differ from each other; GgufError for a missing key or tensor
 */
export function readBaseShape(file: GgufFile): BaseShape {
  const architecture = file.string("general.architecture");
  const layers = file.number(`${architecture}.block_count`);
  const dims = (layer: number, module: LoraModule) => file.tensor(tensorName({ layer, module })).dims;
  const modules = Object.fromEntries(loraModules.map((module) => [module, dims(0, module)]));
  for (let layer = 0; layer < layers; layer++) {
    for (const module of loraModules) {
      const found = dims(layer, module);
      if (found.length === 2 && found.join() === modules[module]!.join()) continue;
      const tensor = tensorName({ layer, module });
      throw new LoraError(
        "wrong-base",
        `${tensor} is [${found.join(", ")}], but in layer 0 it is [${modules[module]!.join(", ")}]; all layers must be alike`,
        { path: file.path, tensor, value: found },
      );
    }
  }
  return checkShape({ architecture, layers, modules: modules as unknown as BaseShape["modules"] });
}

/** Weights of all projections of the base: what an adapter's size is compared with. */
export function projectionWeights({ layers, modules }: BaseShape): number {
  return layers * loraModules.reduce((sum, module) => sum + modules[module][0] * modules[module][1], 0);
}

/** @throws LoraError `invalid-argument` unless all numbers are positive integers. */
export function checkShape(shape: BaseShape): BaseShape {
  const isCount = (value: unknown) =>
    Number.isSafeInteger(value) && (value as number) >= 1 && (value as number) <= 2 ** 31;
  if (!isCount(shape.layers)) {
    throw new LoraError("invalid-argument", `the base's layers must be a positive integer, got ${shape.layers}`, {
      value: shape.layers,
    });
  }
  for (const module of loraModules) {
    const lengths = shape.modules[module] as readonly number[] | undefined;
    if (lengths?.length === 2 && lengths.every(isCount)) continue;
    throw new LoraError("invalid-argument", `the base's ${module} must be [inputs, outputs], got [${lengths}]`, {
      value: lengths,
    });
  }
  return shape;
}
