import { GgufFile, type TensorToWrite, type WriteValue, writeGguf } from "@niwaki/gguf";
import { goldens } from "@niwaki/testing";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { readBaseShape } from "./base-shape.js";
import { readAdapter } from "./read-adapter.js";
import { readGgufAdapter } from "./read-gguf.js";
import { comparable, randomAdapter, temporaryFolder, tinyShape } from "./test-adapters.js";
import { writeGgufAdapter } from "./write-gguf.js";
import { writePeftAdapter } from "./write-peft.js";

const at = temporaryFolder();

describe("PEFT to GGUF to PEFT", () => {
  const cases = goldens().flatMap(({ model, adapters }) => adapters.map(({ name, path }) => ({ name, path, model })));

  test.each(cases.filter(({ name }) => !name.includes("dora")))(
    "$name: the same bits",
    async ({ name, path, model }) => {
      const shape = readBaseShape(await GgufFile.open(model));
      const adapter = await readAdapter(path, shape);
      await writeGgufAdapter(adapter, at(`${name}.gguf`));
      const converted = await readAdapter(at(`${name}.gguf`), shape);
      expect(comparable(converted)).toEqual(comparable(adapter));
      await writePeftAdapter(converted, at(name));
      expect(comparable(await readAdapter(at(name), shape))).toEqual(comparable(adapter));
    },
  );

  test("any ranks, alphas, types and modules", async () => {
    const alpha = fc.oneof(fc.integer({ min: -3, max: 64 }), fc.double({ min: -1e3, max: 1e3, noNaN: true }));
    const rank = fc.integer({ min: 1, max: 9 });
    const config = fc.record({
      rank,
      alpha,
      useRsLora: fc.boolean(),
      rankPattern: fc.dictionary(fc.constantFrom("q_proj", "layers.1.mlp.up_proj", "mlp.*"), rank, {
        noNullPrototype: true,
      }),
      alphaPattern: fc.dictionary(fc.constantFrom("k_proj", "layers.2.*"), alpha, { noNullPrototype: true }),
      targetModules: fc.constantFrom<string | string[]>("all-linear", ["q_proj", "up_proj"], ".*1.*k_proj"),
    });
    await fc.assert(
      fc.asyncProperty(
        config,
        fc.constantFrom("F32" as const, "F16" as const, "BF16" as const),
        async (options, type) => {
          const adapter = randomAdapter(options, 2, type);
          await writeGgufAdapter(adapter, at("any.gguf"));
          const converted = await readGgufAdapter(at("any.gguf"), tinyShape);
          expect(comparable(converted)).toEqual(comparable(adapter));
          await writePeftAdapter(converted, at("any"));
          expect(comparable(await readAdapter(at("any"), tinyShape))).toEqual(comparable(adapter));
        },
      ),
      { seed: 6, numRuns: 60 },
    );
  });

  test("one alpha where it says all scales, else a type of its own", async () => {
    const typeOf = async (options: Parameters<typeof randomAdapter>[0]) => {
      await writeGgufAdapter(randomAdapter(options), at("type.gguf"));
      const file = await GgufFile.open(at("type.gguf"));
      return [file.string("adapter.type"), file.number("adapter.lora.alpha")];
    };
    expect(await typeOf({ alpha: 16 })).toEqual(["lora", 16]);
    expect(await typeOf({ alpha: 8, rank: 8 })).toEqual(["lora", 0]);
    expect(await typeOf({ alpha: 10, rankPattern: { q_proj: 3 } })).toEqual(["lora", 10]);
    expect(await typeOf({ alpha: 8, rank: 4, useRsLora: true })).toEqual(["lora", 16]);
    expect((await typeOf({ alpha: 16, alphaPattern: { q_proj: 3 } }))[0]).toBe("lora-scales");
    expect((await typeOf({ alpha: 16, useRsLora: true, rankPattern: { q_proj: 3 } }))[0]).toBe("lora-scales");
    expect((await typeOf({ alpha: 0 }))[0]).toBe("lora-scales");
    await expect(typeOf({ useDora: true })).rejects.toMatchObject({ code: "not-expressible" });
  });
});

describe("refuses", () => {
  const good: Record<string, WriteValue> = {
    "general.type": "adapter",
    "general.architecture": "qwen3",
    "adapter.type": "lora",
    "adapter.lora.alpha": { type: "float32", value: 4 },
  };
  const tensor = (name: string, dims: number[], value = 1): TensorToWrite => {
    const values = new Float32Array(dims.reduce((x, y) => x * y, 1)).fill(value);
    return { name, dims, type: "F32", data: new Uint8Array(values.buffer) };
  };
  const [a, b] = ["blk.1.attn_q.weight.lora_a", "blk.1.attn_q.weight.lora_b"];
  const pair = [tensor(a, [12, 2]), tensor(b, [2, 16])];
  const read = async (metadata: Record<string, WriteValue>, tensors: TensorToWrite[]) => {
    await writeGguf(at("refused.gguf"), { metadata, tensors });
    return await readGgufAdapter(at("refused.gguf"), tinyShape);
  };

  test("nothing of a sound file; alpha 0 is scale 1", async () => {
    expect((await read(good, pair)).targets).toMatchObject([{ tensor: "blk.1.attn_q.weight", rank: 2, scale: 2 }]);
    const zero = { ...good, "adapter.lora.alpha": { type: "float32", value: 0 } as const };
    expect((await read(zero, pair)).targets).toMatchObject([{ scale: 1 }]);
  });

  test.each([
    ["a model", { "general.type": "model" }, "unsupported"],
    ["another architecture", { "general.architecture": "llama" }, "wrong-base"],
    ["another kind of adapter", { "adapter.type": "control" }, "unsupported"],
    ["an infinite alpha", { "adapter.lora.alpha": { type: "float32", value: Number.POSITIVE_INFINITY } }, "bad-config"],
    ["an alpha that is no number", { "adapter.lora.alpha": "4" }, "wrong-type"],
    [
      "scales of other targets",
      { "adapter.type": "lora-scales", "niwaki.lora.scales": { type: "float32[]", value: [1, 2] } },
      "bad-config",
    ],
  ] as [string, Record<string, WriteValue>, string][])("%s", async (_, metadata, code) => {
    await expect(read({ ...good, ...metadata }, pair)).rejects.toMatchObject({ code, path: at("refused.gguf") });
  });

  test.each([
    ["half a pair", [pair[0]!], "missing-tensor", b],
    ["the other half", [pair[1]!], "missing-tensor", a],
    ["two ranks", [pair[0]!, tensor(b, [3, 16])], "wrong-rank", b],
    ["another width", [tensor(a, [13, 2]), pair[1]!], "wrong-shape", a],
    ["another height", [pair[0]!, tensor(b, [2, 4])], "wrong-shape", b],
    ["NaN", [pair[0]!, tensor(b, [2, 16], Number.NaN)], "not-finite", b],
    ["a layer too many", [tensor("blk.3.attn_q.weight.lora_a", [12, 2])], "wrong-base", "blk.3.attn_q.weight.lora_a"],
    ["an embedding", [...pair, tensor("token_embd.weight.lora_a", [12, 2])], "unsupported", "token_embd.weight.lora_a"],
    ["an LM head", [...pair, tensor("output.weight.lora_b", [2, 12])], "unsupported", "output.weight.lora_b"],
    ["a norm", [...pair, tensor("blk.0.attn_norm.weight", [12])], "unknown-tensor", "blk.0.attn_norm.weight"],
    [
      "another type",
      [{ ...pair[0]!, type: "Q8_0", dims: [32, 2], data: new Uint8Array(68) }, pair[1]!],
      "wrong-shape",
      a,
    ],
  ] as [string, TensorToWrite[], string, string][])("%s", async (_, tensors, code, name) => {
    const error = await read(good, tensors).catch((e) => e);
    expect(error).toMatchObject({ code, tensor: name, path: at("refused.gguf") });
    expect(error.message).toContain(name);
  });

  test("a type that cannot be applied", async () => {
    const shape = { ...tinyShape, modules: { ...tinyShape.modules, q_proj: [32, 16] as const } };
    const tensors = [{ ...pair[0]!, type: "Q8_0" as const, dims: [32, 2], data: new Uint8Array(68) }, pair[1]!];
    await writeGguf(at("q8.gguf"), { metadata: good, tensors });
    await expect(readGgufAdapter(at("q8.gguf"), shape)).rejects.toMatchObject({
      code: "wrong-type",
      tensor: a,
      value: "Q8_0",
    });
    await writeGguf(at("none.gguf"), { metadata: good, tensors: [tensor("blk.0.x", [1])] });
    await expect(readGgufAdapter(at("none.gguf"), shape)).rejects.toMatchObject({ code: "unknown-tensor" });
  });
});
