import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Device } from "./device.js";
import type { Encoder } from "./encoder.js";
import { failure } from "./test-errors.js";
import { randomTensor } from "./test-tensors.js";

const limits = { maxRows: 8, maxOutputs: 4, vocabulary: 64, blockSize: 16 };
let device: Device;

beforeAll(() => {
  device = Device.open({ threads: 1 });
});
afterAll(() => device.dispose());

async function parts() {
  return {
    table: await device.loadMatrix(randomTensor("table", "F32", 64, 32, 1)),
    matrix: await device.loadMatrix(randomTensor("matrix", "F32", 48, 32, 2)),
    odd: await device.loadMatrix(randomTensor("odd", "F32", 5, 32, 3)),
    norm: device.loadVector(randomTensor("norm", "F32", 1, 32, 4)),
    headNorm: device.loadVector(randomTensor("headNorm", "F32", 1, 16, 5)),
    kv: device.createKvCache({ layers: 2, kvHeads: 1, headDim: 16, blockSize: 16, blocks: 2, type: "f16" }),
  };
}

describe("Encoder", () => {
  it("refuses shapes that do not fit, naming argument and value", async () => {
    const { table, matrix, odd, norm, headNorm, kv } = await parts();
    const wideKv = device.createKvCache({ ...kv.shape, blockSize: 32 });
    const foreign = await new Promise<ReturnType<Encoder["buffer"]>>((resolve) => {
      device.encode(limits, (e) => {
        resolve(e.buffer(32));
        const hidden = e.buffer(32);
        const selected = e.outputBuffer(32);
        const logits = e.outputBuffer(64);
        e.embed(table, hidden);
        e.selectOutputs(hidden, selected);
        e.linear(selected, table, logits);
        return logits;
      });
    });
    const cases: [(e: Encoder) => void, string][] = [
      [(e) => e.buffer(0), "width is 0: it must be an integer from 1 to 2147483647"],
      [(e) => e.label(""), 'name is "": it must be a string that is not empty'],
      [(e) => e.qkvBuffer(3, 2, 16), "heads is 3: it must be a multiple of 2"],
      [(e) => e.qkvBuffer(2, 1, 24), "headDim is 24: it must be a multiple of 16"],
      [(e) => e.embed(matrix, e.buffer(32)), "table.rows is 48: it must have a row for each of 64 tokens"],
      [(e) => e.embed(table, e.buffer(33)), "out.width is 33: it must be 32 here"],
      [(e) => e.embed(table, e.outputBuffer(32)), "out is a Buffer: it has the output rows and must have all rows"],
      [(e) => e.embed(norm as never, e.buffer(32)), "table is a Vector: it must be a Matrix"],
      [(e) => e.rmsNorm(e.buffer(31), norm, e.buffer(32), 1e-6), "input.width is 31: it must be 32 here"],
      [(e) => e.rmsNorm(e.buffer(32), norm, e.buffer(32), Number.NaN), "eps is NaN: it must be a number from 0 to 1"],
      [(e) => e.rmsNorm(foreign, norm, e.buffer(32), 1e-6), "input is a Buffer: it must be a buffer of this encoder"],
      [(e) => e.linear(e.buffer(32), matrix, e.buffer(32)), "out.width is 32: it must be 48 here"],
      [
        (e) => e.linear(e.buffer(32), matrix, e.buffer(48), { activation: "swiglu" }),
        "out.width is 48: it must be 24 here",
      ],
      [
        (e) => e.linear(e.buffer(32), odd, e.buffer(2), { activation: "swiglu" }),
        "matrix.rows is 5: gate and up have equal rows",
      ],
      [
        (e) => e.linear(e.buffer(32), matrix, e.buffer(24), { activation: "swiglu", accumulate: true }),
        "options.accumulate is true: swiglu cannot be accumulated",
      ],
      [
        (e) => e.linear(e.buffer(32), matrix, e.buffer(48), { activation: "gelu" as "swiglu" }),
        'options.activation is "gelu": it must be "swiglu" or left out',
      ],
      [
        (e) => e.linear(e.outputBuffer(32), matrix, e.buffer(48)),
        "out is a Buffer: it has all rows and must have the output rows",
      ],
      [(e) => e.ropeTable({ headDim: 8, base: 1e4 }), "rope.headDim is 8: it must be an integer from 16 to 2147483647"],
      [(e) => e.ropeTable({ headDim: 16, base: 0 }), "rope.base is 0: it must be a positive number"],
      [
        (e) => e.ropeTable({ headDim: 16, base: 1e4, scaling: { type: "linear", factor: 0.5 } }),
        "rope.scaling.factor is 0.5: it must be at least 1",
      ],
      [
        (e) => e.ropeTable({ headDim: 16, base: 1e4, scaling: { type: "ntk", factor: 2 } as never }),
        'rope.scaling.type is "ntk": it must be "linear" or "yarn"',
      ],
      [
        (e) => e.qkNormRope(e.qkvBuffer(2, 1, 16), norm, headNorm, e.ropeTable({ headDim: 16, base: 1e4 }), 1e-6),
        "qNorm.length is 32: headDim is 16",
      ],
      [
        (e) => e.qkNormRope(e.qkvBuffer(2, 1, 16), headNorm, headNorm, e.buffer(16), 1e-6),
        "rope is a Buffer: it must be a buffer that ropeTable() returned",
      ],
      [(e) => e.kvStore(e.qkvBuffer(2, 2, 16), kv.layer(0)), "kv.cache.shape.kvHeads is 1: it must be 2 here"],
      [(e) => e.kvStore(e.qkvBuffer(2, 1, 16), wideKv.layer(0)), "kv.cache.shape.blockSize is 32: it must be 16 here"],
      [
        (e) => e.pagedAttention(e.qkvBuffer(2, 1, 16), kv.layer(0), e.buffer(16)),
        "out.width is 16: it must be 32 here",
      ],
      [
        (e) => e.selectOutputs(e.outputBuffer(32), e.outputBuffer(32)),
        "input is a Buffer: it has the output rows and must have all rows",
      ],
    ];
    for (const [wrong, message] of cases) {
      const encode = () =>
        device.encode(limits, (e) => {
          wrong(e);
          return e.outputBuffer(64);
        });
      expect((await failure("invalid-argument", encode)).message).toBe(message);
    }
  });

  it("wants limits in range and logits as wide as the vocabulary", async () => {
    for (const [name, value] of Object.entries({ maxRows: 0, maxOutputs: 9, vocabulary: 0.5, blockSize: 24 })) {
      const error = await failure("invalid-argument", () =>
        device.encode({ ...limits, [name]: value }, (e) => e.outputBuffer(64)),
      );
      expect([error.argument, error.value]).toEqual([`limits.${name}`, value]);
    }
    const narrow = await failure("invalid-argument", () => device.encode(limits, (e) => e.outputBuffer(63)));
    expect(narrow.message).toBe("logits.width is 63: it must be 64 here");
    const perRow = await failure("invalid-argument", () => device.encode(limits, (e) => e.buffer(64)));
    expect(perRow.message).toBe("logits is a Buffer: it has all rows and must have the output rows");
    await failure("invalid-argument", () => device.encode(limits, () => undefined as never));
  });

  it("refuses what was disposed, and operations after the end", async () => {
    const { table, matrix, kv } = await parts();
    matrix.dispose();
    const gone = await failure("disposed", () =>
      device.encode(limits, (e) => {
        e.linear(e.buffer(32), matrix, e.buffer(48));
        return e.outputBuffer(64);
      }),
    );
    expect(gone.message).toBe("this Matrix has been disposed and cannot be used any more");
    kv.dispose();
    await failure("disposed", () =>
      device.encode(limits, (e) => {
        e.kvStore(e.qkvBuffer(2, 1, 16), kv.layer(0));
        return e.outputBuffer(64);
      }),
    );
    let kept: Encoder | undefined;
    using plan = device.encode(limits, (e) => {
      kept = e;
      const hidden = e.buffer(32);
      const selected = e.outputBuffer(32);
      const logits = e.outputBuffer(64);
      e.embed(table, hidden);
      e.selectOutputs(hidden, selected);
      e.linear(selected, table, logits);
      return logits;
    });
    expect(plan.byteLength).toBeGreaterThan(0);
    const late = await failure("invalid-argument", () => kept!.ropeTable({ headDim: 16, base: 1e4 }));
    expect(late.message).toBe("ropeTable: the plan of this encoder is compiled and cannot be changed");
  });
});
