import { execFileSync } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { dequantize } from "./dequantize.js";
import { GgufError } from "./gguf-error.js";
import { SafetensorsFile } from "./safetensors-file.js";
import { temporaryFolder } from "./test-folder.js";

const at = temporaryFolder();

/** A file with the JSON `header` and `dataBytes` zeros. */
function raw(header: unknown, dataBytes = 0): Buffer {
  const json = Buffer.from(typeof header === "string" ? header : JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  return Buffer.concat([length, json, Buffer.alloc(dataBytes)]);
}

async function refusal(bytes: Buffer): Promise<GgufError> {
  const path = at("refused.safetensors");
  await writeFile(path, bytes);
  const error = await SafetensorsFile.open(path).catch((reason: unknown) => reason);
  if (!(error instanceof GgufError)) throw new Error(`not refused with a GgufError: ${String(error)}`);
  expect(error.path).toBe(path);
  return error;
}

const two = {
  a: { dtype: "F32", shape: [2, 3], data_offsets: [0, 24] },
  b: { dtype: "F16", shape: [5], data_offsets: [24, 34] },
};

describe("SafetensorsFile", () => {
  it("reads what PEFT wrote", async () => {
    const folder = new URL("../../testing/fixtures/q1-tied.peft-dora/", import.meta.url);
    const file = await SafetensorsFile.open(fileURLToPath(new URL("adapter_model.safetensors", folder)));
    expect(file.metadata.get("format")).toBe("pt");
    expect(file.tensors.size).toBe(2 * 4 * 3);
    const name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    expect(file.tensor(name)).toMatchObject({ dtype: "F32", shape: [4, 256], byteLength: 4096 });
    const values = dequantize("F32", await file.readTensor(name), 1024);
    expect(values.every((value) => Number.isFinite(value) && Math.abs(value) < 1)).toBe(true);
    expect(new Set(values).size).toBeGreaterThan(900);
  });

  it("takes tensors in any order of their data, empty ones, single values and padding", async () => {
    const path = at("order.safetensors");
    const header = {
      late: { dtype: "U8", shape: [2], data_offsets: [8, 10] },
      early: { dtype: "F64", shape: [], data_offsets: [0, 8] },
      empty: { dtype: "F32", shape: [0, 4], data_offsets: [8, 8] },
    };
    const bytes = raw(`${JSON.stringify(header)}   `, 10);
    bytes.set([7, 9], bytes.length - 2);
    await writeFile(path, bytes);
    const file = await SafetensorsFile.open(path);
    expect([...file.tensors.keys()]).toEqual(["late", "early", "empty"]);
    expect([...(await file.readTensor("late"))]).toEqual([7, 9]);
    expect(await file.readTensor("empty")).toHaveLength(0);
    expect(file.metadata.size).toBe(0);
    expect(() => file.tensor("gone")).toThrow(expect.objectContaining({ code: "missing-tensor", tensor: "gone" }));
  });

  it.each([
    ["another shape", { a: { ...two.a, shape: [2, 4] }, b: two.b }, "corrupt", "a"],
    ["a shape beyond 53 bits", { a: { ...two.a, shape: [2 ** 40, 2 ** 40] }, b: two.b }, "corrupt", "a"],
    ["a negative length", { a: { ...two.a, shape: [-2, -3] }, b: two.b }, "corrupt", "a"],
    ["an end before the begin", { a: { ...two.a, data_offsets: [24, 0] }, b: two.b }, "corrupt", "a"],
    ["a negative offset", { a: { ...two.a, data_offsets: [-24, 0] }, b: two.b }, "corrupt", "a"],
    ["an offset that is no integer", { a: { ...two.a, data_offsets: [0.5, 24.5] }, b: two.b }, "corrupt", "a"],
    ["an unknown type", { a: { ...two.a, dtype: "Q1" }, b: two.b }, "unsupported-type", "a"],
    ["a type from the prototype", { a: { ...two.a, dtype: "toString" }, b: two.b }, "unsupported-type", "a"],
    ["an overlap", { a: two.a, b: { ...two.b, data_offsets: [20, 30] } }, "corrupt", "b"],
    ["a gap", { a: two.a, b: { dtype: "F16", shape: [4], data_offsets: [26, 34] } }, "corrupt", "b"],
    ["bytes of nobody at the end", { a: two.a }, "corrupt", undefined],
    [
      "an end after the file's",
      { a: two.a, b: { dtype: "F16", shape: [6], data_offsets: [24, 36] } },
      "truncated",
      "b",
    ],
    ["an entry that is no object", { a: 5 }, "corrupt", "a"],
    ["no offsets", { a: { dtype: "F32", shape: [1] } }, "corrupt", "a"],
    ["metadata that is no text", { __metadata__: { format: 1 }, ...two }, "corrupt", undefined],
  ])("refuses %s", async (_, header, code, tensor) => {
    const error = await refusal(raw(header, 34));
    expect([error.code, error.tensor]).toEqual([code, tensor]);
    if (tensor !== undefined) expect(error.message).toContain(`"${tensor}"`);
  });

  it("refuses a name that stands twice, escaped differently or not", async () => {
    const entry = JSON.stringify(two.a);
    for (const second of ["a", "\\u0061"]) {
      const error = await refusal(raw(`{"a":${entry},"${second}":${entry}}`, 24));
      expect([error.code, error.tensor]).toEqual(["corrupt", "a"]);
      expect(error.message).toContain("stands twice");
    }
  });

  it.each([
    ["an empty file", Buffer.alloc(0), "not-safetensors"],
    ["a GGUF", Buffer.concat([Buffer.from("GGUF"), Buffer.alloc(60, 3)]), "not-safetensors"],
    ["a header longer than the file", raw(two, 34).subarray(0, 40), "truncated"],
    ["a header of no bytes", Buffer.alloc(64), "corrupt"],
    ["no JSON", raw("{nothing}"), "corrupt"],
    ["a list", raw("[1]"), "corrupt"],
    ["a list at the end of an object's braces", raw("{}}"), "corrupt"],
    ["text that is not UTF-8", Buffer.concat([raw("{..}").subarray(0, 9), Buffer.from([0xc3, 0x28, 0x7d])]), "corrupt"],
  ])("refuses %s", async (_, bytes, code) => {
    expect((await refusal(bytes)).code).toBe(code);
  });

  it("refuses what is no file, without waiting for a pipe", async () => {
    await expect(SafetensorsFile.open(at("missing.safetensors"))).rejects.toMatchObject({ code: "unreadable" });
    await expect(SafetensorsFile.open(at(""))).rejects.toMatchObject({ code: "unreadable" });
    const pipe = at("pipe.safetensors");
    execFileSync("mkfifo", [pipe]);
    await expect(SafetensorsFile.open(pipe)).rejects.toMatchObject({ code: "unreadable", path: pipe });
  });

  it("notices that a file has become shorter since it was opened", async () => {
    const path = at("shrinks.safetensors");
    await writeFile(path, raw(two, 34));
    const file = await SafetensorsFile.open(path);
    await writeFile(path, raw(two, 30));
    await expect(file.readTensor("b")).rejects.toMatchObject({ code: "truncated" });
  });
});
