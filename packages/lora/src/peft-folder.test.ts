import { cp, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { GgufFile, SafetensorsFile, type SafetensorsTensorToWrite, writeSafetensors } from "@niwaki/gguf";
import { goldens } from "@niwaki/testing";
import { describe, expect, test } from "vitest";
import { type BaseShape, readBaseShape } from "./base-shape.js";
import { loraConfig } from "./lora-config.js";
import { readAdapter } from "./read-adapter.js";
import { readPeftAdapter } from "./read-peft.js";
import { comparable, randomAdapter, temporaryFolder, tinyShape } from "./test-adapters.js";
import { writePeftAdapter } from "./write-peft.js";

const at = temporaryFolder();

/** Name, type, shape and bytes of everything in a safetensors file. */
async function contents(path: string): Promise<SafetensorsTensorToWrite[]> {
  const file = await SafetensorsFile.open(path);
  const all = [...file.tensors.values()].map(async ({ name, dtype, shape }) => ({
    name,
    dtype,
    shape,
    data: Buffer.from(await file.readTensor(name)),
  }));
  return (await Promise.all(all)).sort((x, y) => (x.name < y.name ? -1 : 1));
}

describe("reading and writing", () => {
  const cases = goldens().flatMap(({ model, adapters }) => adapters.map(({ name, path }) => ({ name, path, model })));

  test.each(cases)("$name is written as it was read, tensor by tensor", async ({ name, path, model }) => {
    const shape = readBaseShape(await GgufFile.open(model));
    const adapter = await readPeftAdapter(path, shape);
    await writePeftAdapter(adapter, at(name));
    const weights = "adapter_model.safetensors";
    expect(await contents(join(at(name), weights))).toEqual(await contents(join(path, weights)));
    const again = await readAdapter(at(name), shape);
    expect(again.config).toEqual(adapter.config);
    expect(comparable(again)).toEqual(comparable(adapter));
  });

  test("the patterns of a file that PEFT wrote: ranks and scales", async () => {
    const { model, adapters } = goldens()[0]!;
    const { path } = adapters.find(({ name }) => name === "q1-tied.peft-patterns")!;
    const adapter = await readPeftAdapter(path, readBaseShape(await GgufFile.open(model)));
    expect(adapter.targets.map(({ tensor, rank, scale }) => [tensor, rank, scale])).toEqual([
      ["blk.0.attn_q.weight", 8, Math.fround(16 / Math.sqrt(8))],
      ["blk.0.attn_k.weight", 8, Math.fround(16 / Math.sqrt(8))],
      ["blk.0.ffn_down.weight", 3, Math.fround(5 / Math.sqrt(3))],
      ["blk.1.attn_q.weight", 2, Math.fround(16 / Math.sqrt(2))],
      ["blk.1.attn_k.weight", 8, Math.fround(16 / Math.sqrt(8))],
      ["blk.1.ffn_down.weight", 3, Math.fround(16 / Math.sqrt(3))],
    ]);
  });

  test.each(["F32", "F16", "BF16"] as const)("%s stays %s", async (type) => {
    const adapter = randomAdapter({ useDora: true, rank: 3 }, 5, type);
    await writePeftAdapter(adapter, at(type));
    const again = await readAdapter(at(type), tinyShape);
    expect(comparable(again)).toEqual(comparable(adapter));
    expect(again.targets[0]!.a.type).toBe(type);
    expect((await readdir(at(type))).sort()).toEqual(["adapter_config.json", "adapter_model.safetensors"]);
  });
});

describe("refuses", () => {
  const q = "base_model.model.model.layers.1.self_attn.q_proj";
  let count = 0;

  /** A sound adapter of q_proj and v_proj, changed; read for a base. */
  async function readChanged(
    change: (tensors: SafetensorsTensorToWrite[]) => SafetensorsTensorToWrite[],
    shape: BaseShape = tinyShape,
    config: Record<string, unknown> = {},
  ) {
    const folder = at(`changed-${count++}`);
    await writePeftAdapter(randomAdapter({ rank: 2, targetModules: ["q_proj", "v_proj"] }), folder);
    const path = join(folder, "adapter_model.safetensors");
    await writeSafetensors(path, { tensors: change(await contents(path)) });
    const configPath = join(folder, "adapter_config.json");
    const json = JSON.parse(await readFile(configPath, "utf8")) as Record<string, unknown>;
    await writeFile(configPath, JSON.stringify({ ...json, ...config }));
    return await readPeftAdapter(folder, shape);
  }
  const same = (tensors: SafetensorsTensorToWrite[]) => tensors;
  const without = (name: string) => (tensors: SafetensorsTensorToWrite[]) =>
    tensors.filter((tensor) => tensor.name !== name);
  const renamed = (from: string, to: string) => (tensors: SafetensorsTensorToWrite[]) =>
    tensors.map((tensor) => (tensor.name === from ? { ...tensor, name: to } : tensor));
  const added =
    (name: string, shape = [2, 2]) =>
    (tensors: SafetensorsTensorToWrite[]) => [
      ...tensors,
      { name, dtype: "F32" as const, shape, data: new Uint8Array(4 * shape.reduce((x, y) => x * y, 1)) },
    ];
  const withShape = (name: string, shape: number[]) => (tensors: SafetensorsTensorToWrite[]) =>
    added(name, shape)(without(name)(tensors));

  test("nothing of the unchanged adapter", async () => {
    expect((await readChanged(same)).targets).toHaveLength(6);
  });

  const embedding = "base_model.model.model.embed_tokens.lora_embedding_A";
  const head = "base_model.model.lm_head.lora_A.weight";
  const saved = "base_model.model.lm_head.weight";
  const norm = "base_model.model.model.norm.weight";
  const bias = `${q}.lora_B.bias`;
  const layer = "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight";
  const unknown = "base_model.model.model.layers.1.self_attn.z_proj.lora_A.weight";
  const [a, b, magnitude] = [`${q}.lora_A.weight`, `${q}.lora_B.weight`, `${q}.lora_magnitude_vector`];
  const k = a.replace("q_proj", "k_proj");

  test.each([
    ["an embedding", "unsupported", embedding, added(embedding)],
    ["an LM head", "unsupported", head, added(head)],
    ["a whole LM head", "unsupported", saved, added(saved)],
    ["a whole norm", "unsupported", norm, added(norm)],
    ["a bias", "unsupported", bias, added(bias)],
    ["a layer too many", "wrong-base", layer, added(layer)],
    ["a module that is none", "unknown-tensor", unknown, added(unknown)],
    ["a module that is not named", "unknown-tensor", k, added(k)],
    ["A missing", "missing-tensor", a, without(a)],
    ["B missing", "missing-tensor", b, without(b)],
    ["B under the name of another", "missing-tensor", b, renamed(b, `${b}x`), "unknown-tensor"],
    ["another rank of A", "wrong-rank", a, withShape(a, [3, 12])],
    ["another rank of B", "wrong-rank", b, withShape(b, [16, 3])],
    ["another width", "wrong-shape", a, withShape(a, [2, 13])],
    ["A transposed", "wrong-shape", a, withShape(a, [12, 2])],
    ["one dimension", "wrong-shape", b, withShape(b, [32])],
    ["a magnitude without DoRA", "unknown-tensor", magnitude, added(magnitude, [16])],
  ] as const)("%s", async (_, code, tensor, change, otherCode?: string) => {
    const error = await readChanged(
      change as (tensors: SafetensorsTensorToWrite[]) => SafetensorsTensorToWrite[],
    ).catch((e) => e);
    expect(error).toMatchObject({
      name: "LoraError",
      code: otherCode ?? code,
      path: expect.stringContaining("safetensors"),
    });
    if (otherCode === undefined) expect(error.tensor).toBe(tensor);
    expect(error.message).toContain(error.tensor);
  });

  test("values that are not finite, and other types", async () => {
    const change = (data: Uint8Array, dtype: "F32" | "I32") => (tensors: SafetensorsTensorToWrite[]) =>
      tensors.map((tensor) => (tensor.name === a ? { ...tensor, dtype, data } : tensor));
    const infinite = new Uint8Array(new Float32Array(24).fill(1).fill(Number.POSITIVE_INFINITY, 13, 14).buffer);
    const error = await readChanged(change(infinite, "F32")).catch((e) => e);
    expect(error).toMatchObject({ code: "not-finite", tensor: a });
    expect(error.message).toContain("row 1, column 1");
    await expect(readChanged(change(new Uint8Array(96), "I32"))).rejects.toMatchObject({
      code: "wrong-type",
      tensor: a,
    });
  });

  test("grouped-query shapes of another base, and fewer layers", async () => {
    const v = "base_model.model.model.layers.0.self_attn.v_proj.lora_B.weight";
    const wider = { ...tinyShape, modules: { ...tinyShape.modules, v_proj: [12, 16] as const } };
    await expect(readChanged(same, wider)).rejects.toMatchObject({ code: "wrong-shape", tensor: v });
    await expect(readChanged(same, { ...tinyShape, layers: 2 })).rejects.toMatchObject({ code: "wrong-base" });
    await expect(readChanged(same, { ...tinyShape, layers: 4 })).rejects.toMatchObject({ code: "missing-tensor" });
  });

  test("what the configuration announces and the file does not have, or the other way around", async () => {
    await expect(readChanged(same, tinyShape, { target_modules: ["q_proj"] })).rejects.toMatchObject({
      code: "unknown-tensor",
    });
    await expect(readChanged(same, tinyShape, { layers_to_transform: [1] })).rejects.toMatchObject({
      code: "unknown-tensor",
    });
    await expect(readChanged(same, tinyShape, { use_dora: true })).rejects.toMatchObject({ code: "missing-tensor" });
    await expect(readChanged(same, tinyShape, { r: 3 })).rejects.toMatchObject({ code: "wrong-rank" });
    await expect(readChanged(same, tinyShape, { modules_to_save: ["lm_head"] })).rejects.toMatchObject({
      code: "unsupported",
      message: expect.stringContaining("lm_head"),
    });
    await expect(readChanged(same, tinyShape, { target_modules: ["x_proj"] })).rejects.toMatchObject({
      path: expect.stringContaining("adapter_"),
    });
  });

  test("folders and files that are missing", async () => {
    await expect(readAdapter(at("nothing"), tinyShape)).rejects.toMatchObject({
      code: "unreadable",
      path: at("nothing"),
    });
    await mkdir(at("empty"));
    await expect(readAdapter(at("empty"), tinyShape)).rejects.toMatchObject({ code: "unreadable" });
    await writePeftAdapter(randomAdapter(), at("whole"));
    await cp(join(at("whole"), "adapter_config.json"), join(at("empty"), "adapter_config.json"));
    await expect(readAdapter(at("empty"), tinyShape)).rejects.toMatchObject({ name: "GgufError", code: "unreadable" });
    await writeFile(join(at("whole"), "adapter_config.json"), " ".repeat(5 * 2 ** 20));
    await expect(readAdapter(at("whole"), tinyShape)).rejects.toMatchObject({ code: "bad-config" });
  });
});

test("a base's shape is that of its file; layers must be alike", async () => {
  const shape = readBaseShape(await GgufFile.open(goldens()[1]!.model));
  expect(shape).toMatchObject({ architecture: "qwen3", modules: { q_proj: [384, 512], o_proj: [512, 384] } });
  expect(shape.modules.k_proj).toEqual(shape.modules.v_proj);
  const config = loraConfig();
  expect(() => randomAdapter({ ...config, layersToTransform: [9] })).toThrow("names no module");
});
