import { GgufFile, type TensorType, tensorTypes } from "@niwaki/gguf";
import { type MergedAdapter, type MergedTensors, mergeIntoModel, readAdapter, readBaseShape } from "@niwaki/lora";
import { Command, Option } from "commander";
import { given, type LoraFlag, loraOption } from "../flags.js";

interface MergeFlags {
  lora: LoraFlag[];
  output: string;
  type?: TensorType;
}

export function mergeCommand(): Command {
  return new Command("merge")
    .description("Write a copy of a model with LoRA adapters merged into its weights, and say what that lost.")
    .argument("<model>", "a GGUF file")
    .addOption(loraOption().makeOptionMandatory())
    .requiredOption("-o, --output <file>", "where the merged model goes")
    .addOption(
      new Option(
        "--type <type>",
        "type of the tensors that change; quantized ones need it, floats stay what they are",
      ).choices(Object.keys(tensorTypes)),
    )
    .action(merge);
}

async function merge(path: string, { lora, output, type }: MergeFlags): Promise<void> {
  const model = await GgufFile.open(path);
  const shape = readBaseShape(model);
  const adapters: MergedAdapter[] = [];
  for (const { path, scale } of lora) adapters.push({ adapter: await readAdapter(path, shape), scale });
  const losses = await mergeIntoModel(model, adapters, output, given({ type }));
  for (const loss of losses) console.error(describe(loss));
}

function describe({ from, to, tensors, change, error, relativeError }: MergedTensors): string {
  return (
    `${tensors} tensors, ${from} to ${to}: changed by ${change.toExponential(2)}, written to within ` +
    `${error.toExponential(2)}, ${(100 * relativeError).toPrecision(3)}% of the change (root mean squares)`
  );
}
