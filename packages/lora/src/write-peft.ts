import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { type SafetensorsTensorToWrite, writeSafetensors } from "@niwaki/gguf";
import type { LoraAdapter } from "./lora-adapter.js";
import { modulePath } from "./modules.js";
import { formatPeftConfig } from "./peft-config.js";
import { peftFiles, peftPrefix, peftSuffixes } from "./read-peft.js";

/**
 * Writes an adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors` in a folder, which is made if need
 * be. A and B keep their types and bits; magnitudes are float32.
 *
 * @throws GgufError `unwritable`, or an error of Node.js, if the folder cannot be written
 */
export async function writePeftAdapter(adapter: LoraAdapter, folder: string): Promise<void> {
  const tensors: SafetensorsTensorToWrite[] = [];
  for (const target of adapter) {
    const { rank, inputs, outputs, a, b, magnitude } = target;
    const name = (part: keyof typeof peftSuffixes) => `${peftPrefix}${modulePath(target)}.${peftSuffixes[part]}`;
    tensors.push({ name: name("a"), dtype: a.type, shape: [rank, inputs], data: a.data });
    tensors.push({ name: name("b"), dtype: b.type, shape: [outputs, rank], data: b.data });
    if (magnitude === undefined) continue;
    const data = new Uint8Array(magnitude.buffer, magnitude.byteOffset, magnitude.byteLength);
    tensors.push({ name: name("magnitude"), dtype: "F32", shape: [outputs], data });
  }
  await mkdir(folder, { recursive: true });
  await writeSafetensors(join(folder, peftFiles.weights), { metadata: { format: "pt" }, tensors });
  await writeFile(join(folder, peftFiles.config), formatPeftConfig(adapter.config));
}
