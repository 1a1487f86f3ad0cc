import type { TrainingBatch } from "@niwaki/kernels-native";
import type { TrainingExample } from "./chat-data.js";

/** The rows of an example: its last token is only predicted. */
export function exampleRows({ ids }: TrainingExample): number {
  return ids.length - 1;
}

/**
 * The examples of an optimizer step as batches of up to `maxRows` rows whose losses add up to the mean over all tokens that
 * are learned. Tokens of the answer weigh 1, those of the prompt `promptWeight`.
 */
export function microBatches(
  examples: readonly TrainingExample[],
  maxRows: number,
  promptWeight: number,
): TrainingBatch[] {
  const weightOf = ({ promptLength }: TrainingExample, target: number) => (target < promptLength ? promptWeight : 1);
  let total = 0;
  for (const example of examples) {
    for (let target = 1; target < example.ids.length; target++) total += weightOf(example, target);
  }
  const batches: TrainingBatch[] = [];
  for (const group of grouped(examples, maxRows)) {
    const tokens: number[] = [];
    const outputs: number[] = [];
    const targets: number[] = [];
    const weights: number[] = [];
    for (const example of group) {
      for (let target = 1; target < example.ids.length; target++) {
        const weight = weightOf(example, target);
        if (weight > 0) {
          outputs.push(tokens.length);
          targets.push(example.ids[target]!);
          weights.push(weight / total);
        }
        tokens.push(example.ids[target - 1]!);
      }
    }
    batches.push({
      tokens: Int32Array.from(tokens),
      sequences: Int32Array.from(group, exampleRows),
      outputs: Int32Array.from(outputs),
      targets: Int32Array.from(targets),
      weights: Float32Array.from(weights),
    });
  }
  return batches;
}

/** Examples in their order, as many together as fit. */
function grouped(examples: readonly TrainingExample[], maxRows: number): TrainingExample[][] {
  const groups: TrainingExample[][] = [];
  let room = 0;
  for (const example of examples) {
    const rows = exampleRows(example);
    if (rows > room || groups.length === 0) {
      groups.push([]);
      room = maxRows;
    }
    groups.at(-1)!.push(example);
    room -= rows;
  }
  return groups;
}
