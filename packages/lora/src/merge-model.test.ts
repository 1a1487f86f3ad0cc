import { readFile, stat, writeFile } from "node:fs/promises";
import { demoAdapterPaths, demoModelPath } from "@niwaki/demo-model";
import { GgufFile, writeGguf } from "@niwaki/gguf";
import { goldens, klDivergence, ReferenceModel } from "@niwaki/testing";
import { describe, expect, test } from "vitest";
import { readBaseShape } from "./base-shape.js";
import { LoraAdapter } from "./lora-adapter.js";
import { loraConfig } from "./lora-config.js";
import { type MergedAdapter, mergeIntoModel } from "./merge-model.js";
import { readAdapter } from "./read-adapter.js";
import { temporaryFolder } from "./test-adapters.js";

const at = temporaryFolder();

/** The model, and the adapters of these folders with their scales. */
async function open(path: string, adapters: readonly (readonly [path: string, scale: number])[]) {
  const model = await GgufFile.open(path);
  const shape = readBaseShape(model);
  const merged: MergedAdapter[] = [];
  for (const [path, scale] of adapters) merged.push({ adapter: await readAdapter(path, shape), scale });
  return { model, adapters: merged };
}

describe("a model with adapters merged into it", () => {
  const cases = goldens().flatMap(({ model, name, adapters, mix, ...golden }) => [
    ...adapters.map(({ path, scale, logits, name }) => ({
      ...golden,
      name,
      model,
      of: [[path, scale] as const],
      logits,
    })),
    ...(mix === null ? [] : [{ ...golden, name: `the mix of ${name}`, model, ...mix }]),
  ]);

  test.each(cases)("gives the logits of the adapters: $name", async ({ model: path, tokens, shape, of, logits }) => {
    const { model, adapters } = await open(path, of);
    const [loss] = await mergeIntoModel(model, adapters, at("f32.gguf"), { type: "F32" });
    expect(loss).toMatchObject({ from: "Q1_0", to: "F32", error: 0, relativeError: 0 });
    const merged = (await ReferenceModel.open(at("f32.gguf"))).forward(tokens);
    expect(klDivergence(logits, merged, shape[1]).max).toBeLessThan(1e-10);
  });
});

describe("mergeIntoModel", () => {
  const pirate = [[demoAdapterPaths.pirate, 1]] as const;

  test("copies metadata and all that is not changed byte for byte", async () => {
    const { model } = await open(demoModelPath, []);
    const shape = readBaseShape(model);
    const config = loraConfig({ rank: 2, targetModules: ["v_proj"], layersToTransform: [1] });
    const adapter = LoraAdapter.from(config, shape, ({ rank, inputs, outputs }) => ({
      a: new Float32Array(rank * inputs).fill(0.01),
      b: new Float32Array(outputs * rank).fill(0.5),
    }));
    await mergeIntoModel(model, [{ adapter }], at("some.gguf"), { type: "F16" });
    const merged = await GgufFile.open(at("some.gguf"));
    expect(await merged.readMetadata()).toEqual(await model.readMetadata());
    expect([...merged.tensors.keys()]).toEqual([...model.tensors.keys()]);
    const changed: string[] = [];
    for (const { name, type, dims } of model.tensors.values()) {
      const after = merged.tensor(name);
      expect(after.dims).toEqual(dims);
      if (after.type === type && Buffer.compare(await merged.readTensor(name), await model.readTensor(name)) === 0)
        continue;
      changed.push(`${name} ${after.type}`);
    }
    expect(changed).toEqual(["blk.1.attn_v.weight F16"]);
  });

  test("keeps floats in their type, and merges again what it wrote", async () => {
    const { model, adapters } = await open(demoModelPath, pirate);
    await mergeIntoModel(model, adapters, at("once.gguf"), { type: "BF16" });
    const once = await GgufFile.open(at("once.gguf"));
    const undone = adapters.map(({ adapter }) => ({ adapter, scale: -1 }));
    // Onto itself: the file is read while its successor is written.
    const [loss] = await mergeIntoModel(once, undone, once.path);
    expect(loss).toMatchObject({ from: "BF16", to: "BF16", tensors: 28 });
    expect(loss!.error).toBeGreaterThan(0);
    expect((await GgufFile.open(once.path)).tensor("blk.0.attn_q.weight").type).toBe("BF16");
  });

  test("says what each type loses of the change", async () => {
    const { model, adapters } = await open(demoModelPath, pirate);
    const loss = async (type: "F16" | "Q8_0" | "Q1_0") => {
      const [found, ...more] = await mergeIntoModel(model, adapters, at("typed.gguf"), { type });
      expect([found!.from, found!.to, found!.tensors, more]).toEqual(["Q1_0", type, 28, []]);
      return found!.relativeError;
    };
    expect(await loss("F16")).toBeLessThan(0.01);
    expect(await loss("Q8_0")).toBeLessThan(0.2);
    expect(await loss("Q1_0")).toBeGreaterThan(0.9);
  });

  test("refuses quantized weights without a type, and leaves nothing behind", async () => {
    const { model, adapters } = await open(demoModelPath, pirate);
    await expect(mergeIntoModel(model, adapters, at("refused.gguf"))).rejects.toMatchObject({
      code: "quantized-weights",
      tensor: "blk.0.attn_q.weight",
      message: expect.stringContaining("a 1-bit weight is one of two values"),
    });
    await expect(stat(at("refused.gguf"))).rejects.toMatchObject({ code: "ENOENT" });
  });

  test("refuses adapters of another model and scales that are no numbers", async () => {
    const { adapters } = await open(demoModelPath, pirate);
    const { model } = await open(goldens()[0]!.model, []);
    const merging = (of: MergedAdapter[]) => mergeIntoModel(model, of, at("refused.gguf"), { type: "F16" });
    await expect(merging(adapters)).rejects.toMatchObject({ code: "wrong-base", tensor: "blk.0.ffn_gate.weight" });
    await expect(merging([{ ...adapters[0]!, scale: Number.NaN }])).rejects.toMatchObject({ code: "invalid-argument" });
  });

  test("refuses tensors that cannot be copied", async () => {
    const data = new Uint8Array(1024);
    await writeGguf(at("q4k.gguf"), { metadata: {}, tensors: [{ name: "w", dims: [256], type: "F32", data }] });
    const bytes = await readFile(at("q4k.gguf"));
    bytes.writeUInt32LE(12, 45); // the type id, behind counts, name and dimensions
    await writeFile(at("q4k.gguf"), bytes);
    const merging = mergeIntoModel(await GgufFile.open(at("q4k.gguf")), [], at("refused.gguf"));
    await expect(merging).rejects.toMatchObject({ code: "unsupported", tensor: "w" });
    await expect(merging).rejects.toThrow("w is of type Q4_K, which cannot be written");
  });
});
