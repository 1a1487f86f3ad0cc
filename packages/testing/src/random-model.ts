import { writeGguf } from "@niwaki/gguf";
import { type RandomModelShape, tensorShapes } from "./model-shape.js";
import { randomTokenizer } from "./random-tokenizer.js";
import { randomMatrix, randomVector } from "./random-weights.js";

/**
 * Writes a Qwen3 GGUF with random weights and a small but valid tokenizer and chat template. The same shape and seed give
 * the same bytes. Weights are scaled so that activations stay of unit size through every layer and logits have a deviation
 * of about 2. Streams: a model of a gigabyte needs some tens of megabytes of memory.
 *
 * @throws RangeError when a matrix's rows are no whole number of blocks or `vocabulary` is under 259.
 */
export async function writeRandomModel(path: string, shape: RandomModelShape, seed: number): Promise<void> {
  await writeGguf(path, {
    alignment: 32,
    metadata: { ...modelMetadata(shape, seed), ...tokenizerMetadata(shape.vocabulary) },
    tensors: tensorShapes(shape).map((tensor, index) => {
      // A seed for each tensor, so that a tensor does not depend on the size of those before it.
      const tensorSeed = Math.imul(seed, 0x9e3779b1) + index;
      return "length" in tensor
        ? { name: tensor.name, dims: [tensor.length], type: "F32", data: randomVector(tensor, tensorSeed) }
        : {
            name: tensor.name,
            dims: [tensor.inputs, tensor.outputs],
            type: tensor.type,
            data: randomMatrix(tensor, tensorSeed),
          };
    }),
  });
}

const uint32 = (value: number) => ({ type: "uint32", value }) as const;
const float32 = (value: number) => ({ type: "float32", value }) as const;

function modelMetadata(shape: RandomModelShape, seed: number) {
  const { linear, yarn } = shape;
  if (linear && yarn) throw new RangeError("a random model has linear or yarn scaling, not both");
  return {
    "general.architecture": "qwen3",
    "general.name": `random ${shape.layers}x${shape.hidden} seed ${seed}`,
    "qwen3.block_count": uint32(shape.layers),
    "qwen3.context_length": uint32(shape.contextLength),
    "qwen3.embedding_length": uint32(shape.hidden),
    "qwen3.feed_forward_length": uint32(shape.ffn),
    "qwen3.attention.head_count": uint32(shape.heads),
    "qwen3.attention.head_count_kv": uint32(shape.kvHeads),
    "qwen3.attention.key_length": uint32(shape.headDim),
    "qwen3.attention.value_length": uint32(shape.headDim),
    "qwen3.attention.layer_norm_rms_epsilon": float32(1e-6),
    "qwen3.rope.freq_base": float32(shape.ropeBase ?? 1e6),
    ...(linear && {
      "qwen3.rope.scaling.type": "linear",
      "qwen3.rope.scaling.factor": float32(linear.factor),
    }),
    ...(yarn && {
      "qwen3.rope.scaling.type": "yarn",
      "qwen3.rope.scaling.factor": float32(yarn.factor),
      "qwen3.rope.scaling.original_context_length": uint32(yarn.originalContext),
    }),
  };
}

function tokenizerMetadata(vocabulary: number) {
  const tokenizer = randomTokenizer(vocabulary);
  return {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "qwen2",
    "tokenizer.ggml.tokens": { type: "string[]", value: tokenizer.tokens } as const,
    "tokenizer.ggml.token_type": { type: "int32[]", value: tokenizer.tokenTypes } as const,
    "tokenizer.ggml.merges": { type: "string[]", value: tokenizer.merges } as const,
    "tokenizer.ggml.bos_token_id": uint32(tokenizer.bosId),
    "tokenizer.ggml.eos_token_id": uint32(tokenizer.eosId),
    "tokenizer.ggml.padding_token_id": uint32(tokenizer.padId),
    "tokenizer.ggml.add_bos_token": false,
    "tokenizer.chat_template": tokenizer.chatTemplate,
  };
}
