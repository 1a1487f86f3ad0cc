import { GgufFile, type GgufTensor } from "@niwaki/gguf";
import type { BaseShape } from "./base-shape.js";
import { atPath, LoraError } from "./errors.js";
import { LoraAdapter } from "./lora-adapter.js";
import { configOf, float32 } from "./lora-config.js";
import { type LoraMatrix, type LoraType, typeBytes } from "./lora-target.js";
import { loraModules, type ModulePlace, parseTensorName, tensorName } from "./modules.js";

/** Keys of an adapter's metadata, and the values that say what it is. */
export const ggufKeys = {
  type: "general.type",
  architecture: "general.architecture",
  adapterType: "adapter.type",
  alpha: "adapter.lora.alpha",
  /** Ours, beside the adapter type {@link scaledType}: the scale of each target, in the order of the file's A tensors. */
  scales: "niwaki.lora.scales",
} as const;

/** An adapter whose scales are not one alpha over each rank; a type of its own, so that other readers refuse it. */
export const scaledType = "lora-scales";

type Half = "a" | "b";
type Pair = Partial<Record<Half, GgufTensor>>;

/**
 * Reads an adapter in GGUF: `general.type` adapter, `adapter.type` lora, and a `….lora_a` and `….lora_b` for each adapted
 * tensor. Scale alpha / rank; an alpha of 0 stands for the scale 1.
 *
 * @param shape of the base that it is for
 * @throws LoraError for a file that is no LoRA of this base, naming the tensor; GgufError for a broken file
 */
export async function readGgufAdapter(path: string, shape: BaseShape): Promise<LoraAdapter> {
  const file = await GgufFile.open(path);
  const pairs = readPairs(file, shape);
  const scaleOf = readScales(file, pairs);
  const targets: (ModulePlace & { rank: number; scale: number })[] = [];
  for (let layer = 0; layer < shape.layers; layer++) {
    for (const module of loraModules) {
      const tensor = tensorName({ layer, module });
      const pair = pairs.get(tensor);
      if (pair === undefined) continue;
      const rank = checkPair(pair, tensor, shape.modules[module], path);
      targets.push({ layer, module, rank, scale: scaleOf(tensor, rank) });
    }
  }
  if (targets.length === 0) throw new LoraError("missing-tensor", "has no tensor of an adapter", { path });
  try {
    return await LoraAdapter.fromAsync(configOf(targets, shape), shape, async ({ tensor }) => {
      const { a, b } = pairs.get(tensor)!;
      const names = { a: a!.name, b: b!.name, magnitude: "" };
      return { a: await readMatrix(file, a!), b: await readMatrix(file, b!), names };
    });
  } catch (error) {
    throw atPath(error, path);
  }
}

function readPairs(file: GgufFile, shape: BaseShape): Map<string, Pair> {
  const { path } = file;
  const expect = (key: string, wanted: readonly string[], code: "unsupported" | "wrong-base") => {
    const value = file.string(key);
    if (wanted.includes(value)) return;
    throw new LoraError(code, `${key} is ${JSON.stringify(value)}, not ${JSON.stringify(wanted[0])}`, { path, value });
  };
  expect(ggufKeys.type, ["adapter"], "unsupported");
  expect(ggufKeys.adapterType, ["lora", scaledType], "unsupported");
  expect(ggufKeys.architecture, [shape.architecture], "wrong-base");
  const pairs = new Map<string, Pair>();
  for (const tensor of file.tensors.values()) {
    const { name } = tensor;
    const [, base, half] = /^(.*)\.lora_([ab])$/.exec(name) ?? [];
    const place = base === undefined ? undefined : parseTensorName(base);
    if (base === undefined || place === undefined) throw refuseName(name, path);
    if (place.layer >= shape.layers) {
      throw new LoraError("wrong-base", `${name} is of layer ${place.layer}, but the base has ${shape.layers} layers`, {
        path,
        tensor: name,
      });
    }
    pairs.set(base, { ...pairs.get(base), [half as Half]: tensor });
  }
  return pairs;
}

function refuseName(name: string, path: string): LoraError {
  if (/^(token_embd|output)\./.test(name)) {
    return new LoraError("unsupported", `${name} adapts the embedding or the LM head, which cannot be applied`, {
      path,
      tensor: name,
    });
  }
  return new LoraError("unknown-tensor", `${name} belongs to no projection of the base's layers`, {
    path,
    tensor: name,
  });
}

/** Checks both halves against the base; returns their rank. */
function checkPair(pair: Pair, tensor: string, [inputs, outputs]: readonly [number, number], path: string): number {
  for (const half of ["a", "b"] as const) {
    const name = `${tensor}.lora_${half}`;
    if (pair[half] !== undefined) continue;
    throw new LoraError("missing-tensor", `${name} is missing; the adapter was cut or converted in part`, {
      path,
      tensor: name,
    });
  }
  const [a, b] = [pair.a!, pair.b!];
  const rank = a.dims[1] ?? 0;
  const check = ({ name, dims }: GgufTensor, wanted: readonly number[], code: "wrong-shape" | "wrong-rank") => {
    if (dims.join() === wanted.join()) return;
    throw new LoraError(code, `${name} is [${dims.join(", ")}], but [${wanted.join(", ")}] is needed`, {
      path,
      tensor: name,
      value: dims,
    });
  };
  check(a, [inputs, rank], "wrong-shape");
  check(b, [b.dims[0] ?? 0, outputs], "wrong-shape");
  check(b, [rank, outputs], "wrong-rank");
  return rank;
}

async function readMatrix(file: GgufFile, { name, type, typeName }: GgufTensor): Promise<LoraMatrix> {
  if (type === null || !Object.hasOwn(typeBytes, type)) {
    throw new LoraError("wrong-type", `${name} is of type ${typeName}; F32, F16 and BF16 can be applied`, {
      path: file.path,
      tensor: name,
      value: typeName,
    });
  }
  return { type: type as LoraType, data: await file.readTensor(name) };
}

function readScales(file: GgufFile, pairs: ReadonlyMap<string, Pair>): (tensor: string, rank: number) => number {
  const { path } = file;
  if (file.string(ggufKeys.adapterType) === scaledType) {
    const scales = file.numbers(ggufKeys.scales).map(float32);
    const byTensor = new Map([...pairs.keys()].map((tensor, i) => [tensor, scales[i]!]));
    if (scales.length === pairs.size && scales.every(Number.isFinite)) return (tensor) => byTensor.get(tensor)!;
    throw new LoraError(
      "bad-config",
      `${ggufKeys.scales} must have a finite number for each of ${pairs.size} targets`,
      { path },
    );
  }
  const alpha = Math.fround(file.number(ggufKeys.alpha));
  if (Number.isFinite(alpha)) return (_, rank) => ggufScale(alpha, rank);
  throw new LoraError("bad-config", `${ggufKeys.alpha} is ${alpha}`, { path, value: alpha });
}

/** The scale that an alpha in GGUF stands for. */
export function ggufScale(alpha: number, rank: number): number {
  return alpha === 0 ? 1 : float32(alpha / rank);
}
