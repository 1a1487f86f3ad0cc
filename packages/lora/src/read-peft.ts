import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { dequantize, SafetensorsFile, type SafetensorsTensor } from "@niwaki/gguf";
import type { BaseShape } from "./base-shape.js";
import { atPath, LoraError } from "./errors.js";
import { LoraAdapter } from "./lora-adapter.js";
import { type LoraConfig, type PlannedTarget, planTargets } from "./lora-config.js";
import { type LoraMatrix, type LoraType, type TargetWeights, typeBytes } from "./lora-target.js";
import { modulePath, parseModulePath, tensorName } from "./modules.js";
import { parsePeftConfig } from "./peft-config.js";

/** Names of the two files in a folder of PEFT's. */
export const peftFiles = { config: "adapter_config.json", weights: "adapter_model.safetensors" } as const;

/** What PEFT puts before a module's path, and after it. */
export const peftPrefix = "base_model.model.";
export const peftSuffixes = { a: "lora_A.weight", b: "lora_B.weight", magnitude: "lora_magnitude_vector" } as const;

type Part = keyof typeof peftSuffixes;

/** The tensors of one module in the file. */
type Parts = Partial<Record<Part, SafetensorsTensor>>;

const maxConfigBytes = 4 * 2 ** 20;

/**
 * Reads an adapter as PEFT saves it: a folder with `adapter_config.json` and `adapter_model.safetensors`.
 *
 * @param shape of the base that it is for
 * @throws LoraError for a folder that is no LoRA of this base, naming file and tensor; GgufError for a broken safetensors file
 */
export async function readPeftAdapter(folder: string, shape: BaseShape): Promise<LoraAdapter> {
  const configPath = join(folder, peftFiles.config);
  const config = parsePeftConfig(await readText(configPath), configPath, shape.architecture);
  const file = await SafetensorsFile.open(join(folder, peftFiles.weights));
  try {
    return await readWeights(config, file, shape);
  } catch (error) {
    // A misfit of the two files is told under the name of the one with the tensors.
    throw atPath(error, error instanceof LoraError && error.tensor === undefined ? configPath : file.path);
  }
}

async function readWeights(config: LoraConfig, file: SafetensorsFile, shape: BaseShape): Promise<LoraAdapter> {
  const found = new Map<string, Parts>();
  for (const tensor of file.tensors.values()) {
    const { base, part } = parseName(tensor.name, shape);
    found.set(base, { ...found.get(base), [part]: tensor });
  }
  const announced = new Set(planTargets(config, shape).map(({ tensor }) => tensor));
  for (const [base, parts] of found) {
    if (announced.has(base)) continue;
    const tensor = Object.values(parts)[0]!.name;
    throw new LoraError("unknown-tensor", `${tensor} belongs to a module that target_modules does not name`, {
      tensor,
    });
  }
  return await LoraAdapter.fromAsync(config, shape, (planned) =>
    readTarget(file, planned, found.get(planned.tensor) ?? {}, config.useDora),
  );
}

async function readTarget(
  file: SafetensorsFile,
  planned: PlannedTarget,
  parts: Parts,
  useDora: boolean,
): Promise<TargetWeights> {
  const { rank, inputs, outputs } = planned;
  const name = (part: Part) => `${peftPrefix}${modulePath(planned)}.${peftSuffixes[part]}`;
  const names = { a: name("a"), b: name("b"), magnitude: name("magnitude") };
  checkDims(parts.a, names.a, [rank, inputs], 0);
  checkDims(parts.b, names.b, [outputs, rank], 1);
  const a = await readMatrix(file, parts.a!);
  const b = await readMatrix(file, parts.b!);
  if (!useDora && parts.magnitude === undefined) return { a, b, names };
  checkDims(parts.magnitude, names.magnitude, [outputs], -1);
  const { type, data } = await readMatrix(file, parts.magnitude!);
  return { a, b, names, magnitude: dequantize(type, data, outputs) };
}

function checkDims(
  tensor: SafetensorsTensor | undefined,
  name: string,
  wanted: readonly number[],
  rankAt: number,
): void {
  if (tensor === undefined) {
    throw new LoraError("missing-tensor", `${name} is missing; the adapter was cut or converted in part`, {
      tensor: name,
    });
  }
  if (tensor.shape.join() === wanted.join()) return;
  const isRank =
    tensor.shape.length === wanted.length && wanted.every((length, i) => i === rankAt || tensor.shape[i] === length);
  throw new LoraError(
    isRank ? "wrong-rank" : "wrong-shape",
    `${name} is [${tensor.shape.join(", ")}], but ` +
      (isRank
        ? `the configuration says rank ${wanted[rankAt]}`
        : `this base and its configuration need [${wanted.join(", ")}]`),
    { tensor: name, value: tensor.shape },
  );
}

async function readMatrix(file: SafetensorsFile, { name, dtype }: SafetensorsTensor): Promise<LoraMatrix> {
  if (!Object.hasOwn(typeBytes, dtype)) {
    throw new LoraError("wrong-type", `${name} is of type ${dtype}; F32, F16 and BF16 can be applied`, {
      tensor: name,
      value: dtype,
    });
  }
  return { type: dtype as LoraType, data: await file.readTensor(name) };
}

/** The base's tensor and the part of its adapter that a name in the file stands for. */
function parseName(name: string, shape: BaseShape): { base: string; part: Part } {
  const refuse = (code: "unsupported" | "unknown-tensor" | "wrong-base", message: string) =>
    new LoraError(code, `${name} ${message}`, { tensor: name });
  for (const [part, suffix] of Object.entries(peftSuffixes)) {
    if (!name.startsWith(peftPrefix) || !name.endsWith(`.${suffix}`)) continue;
    const place = parseModulePath(name.slice(peftPrefix.length, -suffix.length - 1));
    if (place === undefined) break;
    if (place.layer < shape.layers) return { base: tensorName(place), part: part as Part };
    throw refuse(
      "wrong-base",
      `is of layer ${place.layer}, but the base has ${shape.layers} layers; use the adapter's own base`,
    );
  }
  if (/embed_tokens|lm_head|lora_embedding_/.test(name)) {
    throw refuse("unsupported", "adapts the embedding or the LM head, which cannot be applied; train without them");
  }
  if (/\.lora_[AB]\.bias$/.test(name))
    throw refuse("unsupported", "is a bias, which cannot be applied; train with lora_bias false");
  if (/lora_/.test(name)) throw refuse("unknown-tensor", "belongs to no projection of the base's layers");
  throw refuse(
    "unsupported",
    "is no part of a LoRA but a whole weight (modules_to_save, or a bias), which cannot be applied",
  );
}

async function readText(path: string): Promise<string> {
  try {
    const { size } = await stat(path);
    if (size > maxConfigBytes) {
      throw new LoraError("bad-config", `has ${size} bytes, no configuration has more than ${maxConfigBytes}`, {
        path,
      });
    }
    return await readFile(path, "utf8");
  } catch (cause) {
    if (cause instanceof LoraError) throw cause;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new LoraError("unreadable", `cannot be read: ${reason}; pass the folder that PEFT saved`, { path, cause });
  }
}
