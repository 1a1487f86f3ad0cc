import { dequantize, SafetensorsFile, writeSafetensors } from "@niwaki/gguf";
import type { TrainingState } from "@niwaki/kernels-native";
import { TrainingError } from "./error.js";

/** What a training is of: equal texts, equal training. */
export type TrainingIdentity = Readonly<Record<"model" | "data" | "lora" | "settings", string>>;

/** A training in the middle: everything that its next step depends on. */
export interface Checkpoint {
  /** Steps taken. */
  readonly step: number;
  readonly identity: TrainingIdentity;
  readonly states: Readonly<Record<(typeof keptStates)[number], Float32Array>>;
}

/** Gradients are 0 between steps. */
export const keptStates = ["parameters", "firstMoments", "secondMoments"] as const satisfies TrainingState[];

const format = "niwaki-training-1";

/** Writes a checkpoint as safetensors: the file is whole or the one before it stays. */
export async function writeCheckpoint(path: string, { step, identity, states }: Checkpoint): Promise<void> {
  await writeSafetensors(path, {
    metadata: { format, step: String(step), ...identity },
    tensors: keptStates.map((name) => {
      const { buffer, byteOffset, byteLength, length } = states[name];
      return { name, dtype: "F32", shape: [length], data: new Uint8Array(buffer, byteOffset, byteLength) };
    }),
  });
}

/**
 * Reads a checkpoint of the same training.
 *
 * @throws TrainingError `bad-checkpoint`; GgufError for a file that is no safetensors
 */
export async function readCheckpoint(
  path: string,
  expected: TrainingIdentity,
  parameters: number,
): Promise<Checkpoint> {
  const file = await SafetensorsFile.open(path);
  const refuse = (why: string, value?: unknown) =>
    new TrainingError("bad-checkpoint", `${path} ${why}`, { path, value });
  if (file.metadata.get("format") !== format) throw refuse("is no checkpoint of a training");
  for (const [name, text] of Object.entries(expected)) {
    const found = file.metadata.get(name);
    if (found === text) continue;
    throw refuse(`belongs to a training with other ${name}; it can only be gone on with as it began`, found);
  }
  const step = Number(file.metadata.get("step"));
  if (!Number.isSafeInteger(step) || step < 0) throw refuse("does not tell its step", file.metadata.get("step"));
  const states: Partial<Record<TrainingState, Float32Array>> = {};
  for (const name of keptStates) {
    const tensor = file.tensors.get(name);
    if (tensor?.dtype !== "F32" || tensor.shape.join() !== String(parameters)) {
      throw refuse(`must have ${parameters} numbers in ${name}`, tensor?.shape);
    }
    const values = dequantize("F32", await file.readTensor(name), parameters);
    if (!values.every(Number.isFinite)) throw refuse(`has numbers in ${name} that are not finite`);
    states[name] = values;
  }
  return { step, identity: expected, states: states as Checkpoint["states"] };
}
