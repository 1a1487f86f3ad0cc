import { type TensorToWrite, type WriteValue, writeGguf } from "@niwaki/gguf";
import { LoraError } from "./errors.js";
import type { LoraAdapter } from "./lora-adapter.js";
import type { LoraTarget } from "./lora-target.js";
import { ggufKeys, ggufScale, scaledType } from "./read-gguf.js";

/**
 * Writes an adapter as a GGUF. A, B and every scale keep their bits. The format has one alpha for the whole file, and the
 * scale alpha / rank. Where no alpha gives all scales (patterns of alphas, rsLoRA with several ranks) they are written out,
 * and the file says `adapter.type` `lora-scales`, which this package alone reads: another reader refuses it rather than
 * apply it with wrong scales.
 *
 * @throws LoraError `not-expressible` for DoRA; GgufError `unwritable`
 */
export async function writeGgufAdapter(adapter: LoraAdapter, path: string): Promise<void> {
  if (adapter.config.useDora) {
    throw new LoraError(
      "not-expressible",
      "a GGUF adapter has no place for DoRA's magnitudes, and without them it is another adapter; write it as a PEFT folder",
      { path },
    );
  }
  const alpha = commonAlpha(adapter.targets);
  const scales =
    alpha === undefined
      ? { [ggufKeys.scales]: { type: "float32[]", value: adapter.targets.map(({ scale }) => scale) } }
      : {};
  const metadata = {
    [ggufKeys.type]: "adapter",
    [ggufKeys.architecture]: adapter.shape.architecture,
    [ggufKeys.adapterType]: alpha === undefined ? scaledType : "lora",
    [ggufKeys.alpha]: { type: "float32", value: alpha ?? adapter.config.alpha },
    ...scales,
  } as Record<string, WriteValue>;
  const tensors = adapter.targets.flatMap(({ tensor, rank, inputs, outputs, a, b }): TensorToWrite[] => [
    { name: `${tensor}.lora_a`, dims: [inputs, rank], type: a.type, data: a.data },
    { name: `${tensor}.lora_b`, dims: [rank, outputs], type: b.type, data: b.data },
  ]);
  await writeGguf(path, { metadata, tensors });
}

/** The float32 alpha that gives each target's scale exactly, if there is one. */
function commonAlpha(targets: readonly LoraTarget[]): number | undefined {
  if (targets.every(({ scale }) => scale === 1)) return 0;
  const { rank, scale } = targets[0]!;
  const nearest = Math.fround(rank * scale);
  const gap = Math.abs(nearest) * 2 ** -24;
  // Rounded twice, the product of scale and rank may miss the alpha that was divided by one float32.
  return [nearest, Math.fround(nearest + gap), Math.fround(nearest - gap)].find(
    (alpha) => alpha !== 0 && targets.every((target) => ggufScale(alpha, target.rank) === target.scale),
  );
}
