// A device and a run on it that takes a good fraction of a second, through the built package.
import { Device } from "../../dist/index.js";

export async function busyDevice() {
  const width = 256;
  const rows = 64;
  const device = Device.open({ threads: 2 });
  const data = new Uint8Array(Float32Array.from({ length: width * width }, (_, i) => (i % 7) / 100).buffer);
  const matrix = await device.loadMatrix({ name: "busy", type: "F32", rows: width, columns: width, data });
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
  const run = () =>
    plan.run({
      tokens: Int32Array.from({ length: rows }, (_, i) => i),
      sequences: [{ rowCount: rows, contextLength: rows, blockTable: Int32Array.of(0, 1, 2, 3) }],
      outputs: Int32Array.of(0),
      samples: [{ output: 0 }],
    });
  return { device, plan, run };
}
