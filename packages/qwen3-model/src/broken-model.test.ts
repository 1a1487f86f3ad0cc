import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { dequantize, GgufFile, quantize, type TensorToWrite, writeGguf } from "@niwaki/gguf";
import { fixturePath } from "@niwaki/testing";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { examineModel } from "./examine.js";
import { Qwen3Model } from "./model.js";

interface Content {
  metadata: Record<string, string | number | boolean | string[] | number[]>;
  tensors: Map<string, TensorToWrite & { data: Uint8Array }>;
}

/** A sound model, taken apart so that a test can break one thing in it. */
async function soundModel(): Promise<Content> {
  const file = await GgufFile.open(fixturePath("q1-tied.gguf"));
  const tensors: Content["tensors"] = new Map();
  for (const { name, dims, type } of file.tensors.values()) {
    tensors.set(name, { name, dims, type: type!, data: await file.readTensor(name) });
  }
  return { metadata: Object.fromEntries(file.metadata) as Content["metadata"], tensors };
}

describe("a model that cannot be run", () => {
  const folder = mkdtempSync(join(tmpdir(), "niwaki-broken-"));
  const path = join(folder, "model.gguf");
  afterAll(() => rmSync(folder, { recursive: true }));

  let content: Content;
  const write = () => writeGguf(path, { metadata: content.metadata, tensors: [...content.tensors.values()] });
  const broken = (breakIt: (content: Content) => void) => async () => {
    content = await soundModel();
    breakIt(content);
    await write();
  };

  describe("nothing broken", () => {
    beforeAll(broken(() => {}));
    it("runs", async () => {
      await using model = await Qwen3Model.load(path, { contextLength: 64 });
      expect(model.config).toMatchObject({ layers: 2, hidden: 256, headDim: 64, vocabulary: 1003, tied: true });
    });
  });

  const set = (key: string, value: string | number) => (content: Content) => {
    content.metadata[key] = value;
  };
  const drop = (key: string) => (content: Content) => {
    delete content.metadata[key];
  };
  const change = (name: string, how: (tensor: TensorToWrite & { data: Uint8Array }) => Partial<TensorToWrite>) => {
    return (content: Content) => {
      const tensor = content.tensors.get(name)!;
      content.tensors.set(name, { ...tensor, ...how(tensor) } as never);
    };
  };
  const asType = (name: string, type: "F16" | "F32") =>
    change(name, ({ dims, type: from, data }) => {
      const count = dims.reduce((product, dim) => product * dim, 1);
      return { type, data: quantize(type, dequantize(from, data, count)) };
    });
  const poison = (name: string, at: number, bytes: number[]) =>
    change(name, ({ data }) => {
      const poisoned = data.slice();
      poisoned.set(bytes, at);
      return { data: poisoned };
    });

  const required = [
    "general.architecture",
    "qwen3.block_count",
    "qwen3.context_length",
    "qwen3.embedding_length",
    "qwen3.feed_forward_length",
    "qwen3.attention.head_count",
    "qwen3.attention.head_count_kv",
    "qwen3.attention.key_length",
    "qwen3.attention.value_length",
    "qwen3.attention.layer_norm_rms_epsilon",
    "qwen3.rope.freq_base",
    "tokenizer.ggml.model",
    "tokenizer.ggml.tokens",
    "tokenizer.ggml.eos_token_id",
  ];
  const cases: [string, (content: Content) => void, { code: string } & Record<string, unknown>, RegExp][] = [
    ...required.map((key): (typeof cases)[number] => [
      `without ${key}`,
      drop(key),
      { code: "missing-key" },
      new RegExp(key.replaceAll(".", "\\.")),
    ]),
    ["of another architecture", set("general.architecture", "llama"), { code: "unsupported-architecture" }, /"llama"/],
    ["with a key of the wrong type", set("qwen3.block_count", "two"), { code: "wrong-type" }, /qwen3\.block_count/],
    ["with more layers than tensors", set("qwen3.block_count", 2 ** 31 - 1), { code: "missing-tensor" }, /block_count/],
    ["with no layers", set("qwen3.block_count", 0), { code: "unsupported-model" }, /block_count/],
    [
      "with heads that do not divide",
      set("qwen3.attention.head_count_kv", 3),
      { code: "unsupported-model" },
      /head_count_kv/,
    ],
    [
      "with values of another length",
      set("qwen3.attention.value_length", 32),
      { code: "unsupported-model" },
      /value_length/,
    ],
    [
      "with a negative epsilon",
      set("qwen3.attention.layer_norm_rms_epsilon", -1),
      { code: "unsupported-model" },
      /epsilon/,
    ],
    [
      "with an unknown RoPE scaling",
      set("qwen3.rope.scaling.type", "longrope"),
      { code: "unsupported-model" },
      /longrope/,
    ],
    ["with YaRN but no factor", set("qwen3.rope.scaling.type", "yarn"), { code: "missing-key" }, /scaling\.factor/],
    ["with another hidden size", set("qwen3.embedding_length", 128), { code: "wrong-shape" }, /token_embd\.weight/],
    ["with another feed-forward size", set("qwen3.feed_forward_length", 512), { code: "wrong-shape" }, /ffn_gate/],
    [
      "with a vocabulary of another algorithm",
      set("tokenizer.ggml.model", "llama"),
      { code: "unsupported-model" },
      /tokenizer\.ggml\.model/,
    ],
    [
      "without a tensor",
      ({ tensors }) => tensors.delete("blk.1.ffn_down.weight"),
      { code: "missing-tensor" },
      /blk\.1\.ffn_down\.weight/,
    ],
    [
      "with a bias",
      ({ tensors }) =>
        tensors.set("blk.0.attn_q.bias", {
          name: "blk.0.attn_q.bias",
          dims: [256],
          type: "F32",
          data: new Uint8Array(1024),
        }),
      { code: "unexpected-tensor" },
      /blk\.0\.attn_q\.bias/,
    ],
    [
      "with a matrix of the wrong shape",
      change("blk.0.attn_k.weight", () => ({ dims: [128, 256] })),
      { code: "wrong-shape" },
      /blk\.0\.attn_k\.weight.*128,256.*256,128/,
    ],
    [
      "with a norm in half precision",
      asType("blk.0.ffn_norm.weight", "F16"),
      { code: "unsupported-tensor-type" },
      /blk\.0\.ffn_norm\.weight.*F16/,
    ],
    // A NaN as float16, little-endian, in the scale of a block.
    [
      "with NaN in a scale",
      poison("blk.1.attn_v.weight", 18 * 5, [0x00, 0x7e]),
      { code: "non-finite" },
      /blk\.1\.attn_v\.weight/,
    ],
    [
      "with an infinite scale",
      poison("token_embd.weight", 0, [0x00, 0x7c]),
      { code: "non-finite" },
      /token_embd\.weight/,
    ],
    [
      "with NaN in a norm",
      poison("output_norm.weight", 8, [0, 0, 0xc0, 0x7f]),
      { code: "non-finite" },
      /output_norm\.weight/,
    ],
  ];

  describe.each(cases)("%s", (_, breakIt, error, message) => {
    beforeAll(broken(breakIt));

    it("is refused with its key or tensor", async () => {
      const refused = Qwen3Model.load(path, { contextLength: 64 });
      await expect(refused).rejects.toMatchObject(error);
      await expect(refused).rejects.toThrow(message);
    });
  });

  describe("several things at once", () => {
    beforeAll(
      broken((content) => {
        drop("tokenizer.ggml.tokens")(content);
        content.tensors.delete("blk.0.attn_norm.weight");
        content.tensors.delete("output_norm.weight");
      }),
    );

    it("are all named", async () => {
      const { config, problems } = examineModel(await GgufFile.open(path));
      expect(config?.layers).toBe(2);
      const messages = problems.map((problem) => problem.message).join("\n");
      for (const name of ["tokenizer.ggml.tokens", "blk.0.attn_norm.weight", "output_norm.weight"]) {
        expect(messages).toContain(name);
      }
    });
  });

  describe("with weights that overflow", () => {
    // The largest float16 as the scale of every block: finite weights, but no finite activations.
    beforeAll(
      broken(
        change("blk.0.ffn_down.weight", ({ data }) => {
          const large = data.slice();
          for (let at = 0; at < large.length; at += 18) large.set([0xff, 0x7b], at);
          return { data: large };
        }),
      ),
    );

    it("loads; where its activations are no numbers any more, the step says so and the next one runs", async () => {
      await using model = await Qwen3Model.load(path, { contextLength: 64 });
      const first = model
        .logits([1, 2, 3], () => {})
        .then(
          () => "finite",
          (error) => error.code,
        );
      expect(["finite", "non-finite"]).toContain(await first);
      await expect(
        model
          .logits([4], () => {})
          .then(
            () => "finite",
            (error) => error.code,
          ),
      ).resolves.toBe(await first);
    });
  });
});
