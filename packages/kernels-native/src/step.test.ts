import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Device } from "./device.js";
import type { SampleSpec, Step } from "./step.js";
import { failure } from "./test-errors.js";
import { TinyModel, tinyWeights } from "./test-tiny-model.js";

let device: Device;
let model: TinyModel;

beforeAll(async () => {
  device = Device.open({ threads: 1 });
  model = await TinyModel.load(device, tinyWeights("F32"));
});
afterAll(async () => {
  model.dispose();
  await device.dispose();
});

const good: Step = {
  tokens: Int32Array.of(7, 8, 9),
  sequences: [{ rowCount: 3, contextLength: 3, blockTable: Int32Array.of(0) }],
  outputs: Int32Array.of(2),
};
const sequence = good.sequences[0]!;

async function messageOf(change: Partial<Record<keyof Step, unknown>>): Promise<string> {
  return (await failure("invalid-argument", () => model.plan.run({ ...good, ...change } as Step))).message;
}

describe("a step", () => {
  it("returns what was asked for and nothing else", async () => {
    expect(await model.plan.run(good)).toEqual({ samples: [], logits: null, started: expect.any(Number) });
    const none = await model.plan.run({ ...good, outputs: Int32Array.of(), logits: true });
    expect(none).toEqual({ samples: [], logits: new Float32Array(0), started: expect.any(Number) });
    const all = await model.plan.run({ ...good, outputs: Int32Array.of(0, 2), logits: true, samples: [{ output: 1 }] });
    expect(all.logits).toHaveLength(200);
    const last = all.logits!.subarray(100);
    expect(all.samples).toEqual([{ token: last.indexOf(Math.max(...last)), logprob: null, top: [] }]);
  });

  it("has tokens in the vocabulary, as many as the plan has room for", async () => {
    expect(await messageOf({ tokens: [7, 8, 9] })).toBe(
      "step.tokens is an array of length 3: it must be an Int32Array",
    );
    expect(await messageOf({ tokens: Int32Array.of() })).toBe("step.tokens.length is 0: a step has from 1 to 64 rows");
    expect(await messageOf({ tokens: new Int32Array(65) })).toBe(
      "step.tokens.length is 65: a step has from 1 to 64 rows",
    );
    expect(await messageOf({ tokens: Int32Array.of(7, 8, 100) })).toBe(
      "step.tokens[2] is 100: tokens are from 0 to 99",
    );
    expect(await messageOf({ tokens: Int32Array.of(-1, 8, 9) })).toBe("step.tokens[0] is -1: tokens are from 0 to 99");
    await failure("invalid-argument", () => model.plan.run(undefined as never));
  });

  it("has sequences whose rows and blocks add up", async () => {
    const of = (change: object) => messageOf({ sequences: [{ ...sequence, ...change }] });
    expect(await of({ rowCount: 2 })).toBe(
      "step.sequences is an array of length 1: their row counts add up to 2, but there are 3 tokens",
    );
    expect(await of({ rowCount: 0 })).toMatch(/^step\.sequences\[0\]\.rowCount is 0: /);
    expect(await of({ contextLength: 2 })).toMatch(/^step\.sequences\[0\]\.contextLength is 2: .* from 3 to /);
    expect(await of({ contextLength: 17 })).toBe(
      "step.sequences[0].blockTable.length is 1: a context of 17 takes 2 blocks of 16",
    );
    expect(await of({ blockTable: [0] })).toMatch(/must be an Int32Array$/);
    expect(await messageOf({ sequences: undefined })).toMatch(/^step\.sequences is undefined: /);
  });

  it("has blocks that the cache has, each slot written once", async () => {
    for (const block of [-1, 16]) {
      const message = await messageOf({ sequences: [{ ...sequence, blockTable: Int32Array.of(block) }] });
      expect(message).toContain(String(block));
      expect(message).toContain("15");
    }
    const one = { rowCount: 1, contextLength: 1, blockTable: Int32Array.of(4) };
    const twice = { tokens: Int32Array.of(1, 2), sequences: [one, one], outputs: Int32Array.of(1) };
    expect(await messageOf(twice)).toContain("block 4");
  });

  it("has ascending output rows", async () => {
    expect(await messageOf({ outputs: Int32Array.of(3) })).toBe("step.outputs[0] is 3: the step has 3 rows");
    expect(await messageOf({ outputs: Int32Array.of(1, 1) })).toBe("step.outputs[1] is 1: output rows are ascending");
    expect(await messageOf({ outputs: undefined })).toBe("step.outputs is undefined: it must be an Int32Array");
    expect(await messageOf({ logits: 1 })).toBe("step.logits is 1: it must be a boolean");
  });

  it("has samples in range", async () => {
    const cases: [Partial<Record<keyof SampleSpec, unknown>>, string][] = [
      [{ output: 1 }, "output is 1: it must be an integer from 0 to 0"],
      [{ temperature: -0.1 }, "temperature is -0.1: it must be at least 0"],
      [{ temperature: Number.NaN }, "temperature is NaN: it must be at least 0"],
      [{ temperature: "1" }, 'temperature is "1": it must be at least 0'],
      [{ topK: 1.5 }, "topK is 1.5: it must be an integer from 0 to 2147483647"],
      [{ topP: 1.1 }, "topP is 1.1: it must be from 0 to 1"],
      [{ minP: -1 }, "minP is -1: it must be from 0 to 1"],
      [{ repetitionPenalty: 0 }, "repetitionPenalty is 0: it must be over 0"],
      [{ presencePenalty: Infinity }, "presencePenalty is Infinity: it must be finite"],
      [{ frequencyPenalty: Number.NaN }, "frequencyPenalty is NaN: it must be finite"],
      [{ seed: -1n }, "seed is -1n: it must be a bigint of 64 bits or a safe integer, and not negative"],
      [{ seed: 2 ** 60 }, `seed is ${2 ** 60}: it must be a bigint of 64 bits or a safe integer, and not negative`],
      [{ logprobs: 101 }, "logprobs is 101: it must be an integer from 0 to 100"],
      [{ history: [1] }, "history is an array of length 1: it must be an Int32Array"],
      [{ history: Int32Array.of(100) }, "history[0] is 100: tokens are from 0 to 99"],
      [{ bias: { 5: 1 } }, "bias is an Object: it must be a Map"],
      [{ bias: new Map([[100, 1]]) }, "bias, a token is 100: it must be an integer from 0 to 99"],
      [{ bias: new Map([[5, Infinity]]) }, "bias of 5 is Infinity: it must be finite or -Infinity"],
      [{ stopTokens: new Set([5]) }, "stopTokens is a Set: it must be an array"],
      [{ stopTokens: [5, 100] }, "stopTokens[1] is 100: it must be an integer from 0 to 99"],
    ];
    for (const [change, message] of cases) {
      expect(await messageOf({ samples: [{ output: 0, ...change }] })).toBe(`step.samples[0].${message}`);
    }
    const all = new Map(Array.from({ length: 100 }, (_, token) => [token, Number.NEGATIVE_INFINITY] as const));
    expect(await messageOf({ samples: [{ output: 0, bias: all }] })).toMatch(/ban/);
  });

  it("says what it needs where others follow", async () => {
    const of = (change: Partial<Record<keyof Step, unknown>>) =>
      messageOf({ samples: [{ output: 0 }], following: 4, ...change });
    expect(await of({ following: -1 })).toBe("step.following is -1: it must be an integer from 0 to 2147483647");
    expect(await of({ following: 14 })).toBe(
      "step.sequences[0].blockTable.length is 1: a context of 17 takes 2 blocks of 16",
    );
    expect(await of({ logits: true })).toBe("step.logits is true: it must be absent or false, as 4 steps may follow");
    expect(await of({ samples: [] })).toBe(
      "step.samples.length is 0: each of the 1 sequences must have one, as 4 steps may follow",
    );
    expect(await of({ outputs: Int32Array.of(1, 2) })).toMatch(/^step\.outputs\.length is 2: /);
    expect(await of({ outputs: Int32Array.of(1) })).toBe(
      "step.outputs[0] is 1: it must be 2, the sequence's last row, as 4 steps may follow",
    );
    expect(await of({ samples: [{ output: 0, history: Int32Array.of(3) }] })).toMatch(
      /^step\.samples\[0\]\.history is an Int32Array of length 1: it must be empty: /,
    );
    const result = await model.plan.run({ ...good, samples: [{ output: 0 }], following: 13 });
    expect(result.samples).toHaveLength(14);
  });
});
