import type { Device } from "./device.js";
import type { Plan } from "./plan.js";
import type { Step } from "./step.js";
import { randomTensor } from "./test-tensors.js";

/** A plan of thousands of operations, which takes a good fraction of a second, and a step for it. */
export async function slowPlan(device: Device): Promise<{ plan: Plan; step: Step }> {
  const width = 256;
  const rows = 64;
  const matrix = await device.loadMatrix(randomTensor("slow", "Q1_0", width, width, 1));
  const plan = device.encode({ maxRows: rows, maxOutputs: 1, vocabulary: width, blockSize: 16 }, (e) => {
    const a = e.buffer(width);
    const b = e.buffer(width);
    const logits = e.outputBuffer(width);
    e.embed(matrix, a);
    e.embed(matrix, b);
    for (let i = 0; i < 4000; i++) e.linear(a, matrix, b, { accumulate: true });
    e.selectOutputs(b, logits);
    return logits;
  });
  const step: Step = {
    tokens: Int32Array.from({ length: rows }, (_, i) => i),
    sequences: [{ rowCount: rows, contextLength: rows, blockTable: Int32Array.of(0, 1, 2, 3) }],
    outputs: Int32Array.of(rows - 1),
    samples: [{ output: 0 }],
  };
  return { plan, step };
}
