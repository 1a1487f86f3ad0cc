import { execFileSync } from "node:child_process";
import { truncate, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { dequantize } from "./dequantize.js";
import { GgufError } from "./gguf-error.js";
import { GgufFile } from "./gguf-file.js";
import { temporaryFolder } from "./test-folder.js";
import { entry, rawGguf, tensorInfo, text, u32, u64 } from "./test-raw-gguf.js";
import { writeGguf } from "./write-gguf.js";

const at = temporaryFolder();

function fixture(name: string): string {
  return fileURLToPath(new URL(`../../testing/fixtures/${name}`, import.meta.url));
}

describe("published files", () => {
  it("mixed-types.gguf: each tensor by its own type", async () => {
    const file = await GgufFile.open(fixture("mixed-types.gguf"));
    expect([file.version, file.alignment, file.byteLength]).toEqual([3, 32, 616480]);
    expect(file.string("general.architecture")).toBe("qwen3");
    expect(file.number("qwen3.attention.layer_norm_rms_epsilon")).toBe(Math.fround(1e-6));
    expect(file.boolean("tokenizer.ggml.add_bos_token")).toBe(false);
    expect(file.strings("tokenizer.ggml.tokens")).toHaveLength(1003);
    expect(new Set(file.numbers("tokenizer.ggml.token_type"))).toEqual(new Set([1, 3]));
    expect(file.tensors.size).toBe(24);
    const types = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"].map(
      (name) => file.tensor(`blk.1.${name}.weight`).type,
    );
    expect(types).toEqual(["Q8_0", "F16", "Q4_0", "BF16", "Q2_0", "F32", "Q1_0"]);
    expect(file.tensor("token_embd.weight")).toMatchObject({ dims: [128, 1003], typeId: 41, byteLength: 18054 });
  });

  it.each([
    ["q1-tied.gguf", "Q1_0"],
    ["q1-untied-yarn.gguf", "Q1_0"],
    ["q2-mqa.gguf", "Q2_0"],
    ["q2-g128-id42.gguf", "Q2_0_G128"],
    ["q2-g128-id142.gguf", "PQ2_0"],
  ])("%s: matrices are %s, vectors F32, all weights finite", async (name, type) => {
    const file = await GgufFile.open(fixture(name));
    for (const tensor of file.tensors.values()) {
      expect(tensor.type).toBe(tensor.dims.length === 1 ? "F32" : type);
      const count = tensor.dims.reduce((product, length) => product * length, 1);
      const values = dequantize(tensor.type!, await file.readTensor(tensor.name), count);
      expect(values.every(Number.isFinite)).toBe(true);
      expect(values.some((value) => value !== 0)).toBe(true);
    }
  });
});

describe("open", () => {
  it("reads a header of 151,669 tokens and as many merges, longer than one read", async () => {
    const path = at("vocabulary.gguf");
    const tokens = Array.from({ length: 151669 }, (_, i) => `Ġ${i.toString(36)}`);
    const merges = tokens.map((token) => `${token} ${token}`);
    await writeGguf(path, {
      metadata: { "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": merges, after: true },
      tensors: [{ name: "w", dims: [2], type: "F32", data: new Uint8Array(8).fill(1) }],
    });
    const file = await GgufFile.open(path);
    expect(file.strings("tokenizer.ggml.tokens")).toEqual(tokens);
    expect(file.strings("tokenizer.ggml.merges")).toEqual(merges);
    expect(file.boolean("after")).toBe(true);
    expect(await file.readTensor("w")).toEqual(new Uint8Array(8).fill(1));
  });

  it("reads 3 MB of tensor entries, of short texts and of one long text", async () => {
    const path = at("tensors.gguf");
    const tensors = Array.from({ length: 30_000 }, (_, i) => tensorInfo(`${i}${"t".repeat(70)}`, [1], 0, 32 * i));
    const short = Array.from({ length: 50 }, (_, i) => `${i}`.padEnd(30_000, "é"));
    const entries = [
      ...short.map((value, i) => entry(`short${i}`, 8, text(value))),
      entry("long", 8, text("é".repeat(1_500_000))),
    ];
    await writeFile(path, rawGguf({ entries, tensors, data: Buffer.alloc(32 * 30_000) }));
    const file = await GgufFile.open(path);
    expect(short.every((value, i) => file.string(`short${i}`) === value)).toBe(true);
    expect(file.string("long") === "é".repeat(1_500_000)).toBe(true);
    expect(file.tensor(`29999${"t".repeat(70)}`).offset).toBe(file.byteLength - 32);
  });

  it("reads a file the size of its header", async () => {
    const path = at("metadata-only.gguf");
    await writeFile(path, rawGguf({ entries: [entry("a", 4, u32(1))] }));
    expect((await GgufFile.open(path)).number("a")).toBe(1);
  });

  it.each([
    ["a missing file", () => at("no-such-file.gguf"), /no-such-file.gguf: the file cannot be opened: ENOENT/],
    ["a folder", () => at(""), /: is no regular file; pass the path of a .gguf file$/],
  ])("refuses %s", async (_, path, message) => {
    const opening = GgufFile.open(path());
    await expect(opening).rejects.toThrow(message);
    await expect(opening).rejects.toMatchObject({ name: "GgufError", code: "unreadable", path: path() });
  });

  it.skipIf(process.platform === "win32")("refuses a pipe without waiting for its writer", async () => {
    execFileSync("/usr/bin/mkfifo", [at("pipe.gguf")]);
    await expect(GgufFile.open(at("pipe.gguf"))).rejects.toMatchObject({ code: "unreadable" });
  });

  it("refuses a file cut short anywhere", async () => {
    const whole = rawGguf({
      entries: [entry("k", 9, u32(8), u64(2), text("ab"), text("c"))],
      tensors: [tensorInfo("w", [16], 0, 0)],
      data: Buffer.alloc(64),
    });
    for (let length = 4; length < whole.length; length++) {
      await writeFile(at("cut.gguf"), whole.subarray(0, length));
      await expect(GgufFile.open(at("cut.gguf"))).rejects.toMatchObject({ code: "truncated", path: at("cut.gguf") });
    }
  });

  it("refuses a header that never ends", async () => {
    const path = at("endless.gguf");
    await writeFile(path, rawGguf({ entries: [entry("k", 8, u64(300 * 2 ** 20))] }));
    await truncate(path, 2 ** 31);
    await expect(GgufFile.open(path)).rejects.toThrow(/the header takes more than 67108864 bytes; that is not read/);
  });

  it("stops at its signal", async () => {
    const reason = new Error("changed my mind");
    await expect(GgufFile.open(fixture("q1-tied.gguf"), { signal: AbortSignal.abort(reason) })).rejects.toBe(reason);
  });
});

describe("getters", () => {
  async function sample(): Promise<GgufFile> {
    const path = at("sample.gguf");
    await writeGguf(path, {
      metadata: {
        text: "a",
        count: 3,
        yes: true,
        texts: ["a", "b"],
        counts: [1, 2],
        none: { type: "string[]", value: [] },
        safe: { type: "uint64", value: 2n ** 53n - 1n },
        unsafe: { type: "int64", value: -(2n ** 53n) },
        mixed: { type: "uint64[]", value: [1n, 2n ** 60n] },
        wide: { type: "int64[]", value: [-5, 7] },
        long: "x".repeat(50),
      },
      tensors: [],
    });
    return await GgufFile.open(path);
  }

  it("give values of the right type", async () => {
    const file = await sample();
    expect([file.has("text"), file.has("other")]).toEqual([true, false]);
    expect(file.string("text")).toBe("a");
    expect(file.number("count")).toBe(3);
    expect(file.number("safe")).toBe(9007199254740991);
    expect(file.boolean("yes")).toBe(true);
    expect(file.strings("texts")).toEqual(["a", "b"]);
    expect(file.numbers("counts")).toEqual([1, 2]);
    expect(file.numbers("wide")).toEqual([-5, 7]);
    expect([file.strings("none"), file.numbers("none")]).toEqual([[], []]);
    expect(file.metadata.get("unsafe")).toBe(-(2n ** 53n));
  });

  it.each([
    ["string", "count", 'the metadata key "count" is the number 3, but a string is needed; convert the model again'],
    [
      "number",
      "text",
      'the metadata key "text" is the string "a", but a number of at most 53 bits is needed; convert the model again',
    ],
    ["number", "unsafe", "is the bigint -9007199254740992, but a number of at most 53 bits is needed"],
    ["boolean", "long", `is the string "${"x".repeat(40)}…", but a boolean is needed`],
    ["strings", "counts", "is an array of 2 elements (number), but an array of strings is needed"],
    ["numbers", "mixed", "is an array of 2 elements (bigint), but an array of numbers of at most 53 bits is needed"],
    ["numbers", "count", "is the number 3, but an array of numbers"],
  ] as const)("%s(%j) is of the wrong type", async (getter, key, message) => {
    const file = await sample();
    expect(() => file[getter](key)).toThrow(message);
    expect(() => file[getter](key)).toThrow(expect.objectContaining({ code: "wrong-type", key, path: file.path }));
  });

  it("name a missing key", async () => {
    const file = await sample();
    for (const getter of ["string", "number", "boolean", "strings", "numbers"] as const) {
      expect(() => file[getter]("qwen3.block_count")).toThrow(
        new GgufError(
          "missing-key",
          'the metadata key "qwen3.block_count" is missing (the file has 11 others); convert the model again with a converter that writes it',
          { path: file.path, key: "qwen3.block_count" },
        ),
      );
    }
    expect(() => file.number("x")).toThrow(expect.objectContaining({ code: "missing-key", key: "x" }));
  });

  it("name a missing tensor", async () => {
    const file = await sample();
    expect(() => file.tensor("output.weight")).toThrow('the tensor "output.weight" is missing (the file has 0 others)');
    await expect(file.readTensor("output.weight")).rejects.toMatchObject({
      code: "missing-tensor",
      tensor: "output.weight",
    });
  });
});

describe("readTensor", () => {
  it("says so when the file has become shorter or has gone", async () => {
    const path = at("shrinking.gguf");
    await writeGguf(path, {
      metadata: {},
      tensors: [{ name: "w", dims: [64], type: "F32", data: new Uint8Array(256) }],
    });
    const file = await GgufFile.open(path);
    await truncate(path, file.byteLength - 1);
    await expect(file.readTensor("w")).rejects.toMatchObject({ code: "truncated", path, offset: file.byteLength - 1 });
  });
});
