import type { GgufFile, GgufTensor, TensorType } from "@niwaki/gguf";
import type { Device, MappedFile, Matrix, TensorSource, Vector, WeightType } from "@niwaki/kernels-native";
import type { Qwen3Config } from "./config.js";
import { ModelError } from "./error.js";
import type { LayerWeights } from "./layer.js";
import type { ModelWeights } from "./plan.js";

/** Names and shapes, [in, out] or [length], of every tensor that a Qwen3 of this shape has. */
export function expectedTensors(c: Qwen3Config): Map<string, readonly number[]> {
  const q = c.heads * c.headDim;
  const kv = c.kvHeads * c.headDim;
  const shapes = new Map<string, readonly number[]>([
    ["token_embd.weight", [c.hidden, c.vocabulary]],
    ["output_norm.weight", [c.hidden]],
  ]);
  if (!c.tied) shapes.set("output.weight", [c.hidden, c.vocabulary]);
  for (let i = 0; i < c.layers; i++) {
    const set = (name: string, shape: number[]) => shapes.set(`blk.${i}.${name}.weight`, shape);
    set("attn_norm", [c.hidden]);
    set("attn_q", [c.hidden, q]);
    set("attn_k", [c.hidden, kv]);
    set("attn_v", [c.hidden, kv]);
    set("attn_q_norm", [c.headDim]);
    set("attn_k_norm", [c.headDim]);
    set("attn_output", [q, c.hidden]);
    set("ffn_norm", [c.hidden]);
    set("ffn_gate", [c.hidden, c.ffn]);
    set("ffn_up", [c.hidden, c.ffn]);
    set("ffn_down", [c.ffn, c.hidden]);
  }
  return shapes;
}

/** Names of the tensors that adapters may touch. */
export function projections(c: Qwen3Config): string[] {
  const matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
  return Array.from({ length: c.layers }, (_, i) => matrices.map((name) => `blk.${i}.${name}.weight`)).flat();
}

/**
 * Everything about a file's tensors that keeps it from running: missing, unexpected (a bias would change every result if it
 * were passed over), of the wrong shape, or of a type that the kernels do not have. Empty when it can run.
 */
export function tensorProblems(file: GgufFile, c: Qwen3Config): ModelError[] {
  const problems: ModelError[] = [];
  const problem = (code: ModelError["code"], tensor: string, message: string, value?: unknown) =>
    problems.push(new ModelError(code, message, { tensor, value }));
  const where = `of ${file.path}`;
  if (file.tensors.size < 11 * c.layers) {
    // A claimed number of layers that the file cannot hold is one problem, not millions.
    problem(
      "missing-tensor",
      `blk.${c.layers - 1}`,
      `qwen3.block_count ${where} is ${c.layers}, but the file has only ${file.tensors.size} tensors.`,
      c.layers,
    );
    return problems;
  }
  const expected = expectedTensors(c);
  for (const [name, shape] of expected) {
    const tensor = file.tensors.get(name);
    if (tensor === undefined) {
      problem("missing-tensor", name, `${name} is missing ${where}: the file is incomplete or not a Qwen3.`);
      continue;
    }
    if (tensor.dims.join() !== shape.join()) {
      problem(
        "wrong-shape",
        name,
        `${name} ${where} has the shape [${tensor.dims}]; its metadata calls for [${shape}].`,
        tensor.dims,
      );
    }
    const isNorm = shape.length === 1;
    if (tensor.type === null || (isNorm && tensor.type !== "F32")) {
      problem(
        "unsupported-tensor-type",
        name,
        `${name} ${where} is of type ${tensor.typeName}; ${isNorm ? "a norm must be F32" : "the kernels have F32, F16, BF16, Q8_0, Q4_0, Q1_0 and Q2_0"}.`,
        tensor.typeName,
      );
    }
  }
  for (const name of file.tensors.keys()) {
    if (!expected.has(name)) {
      problem(
        "unexpected-tensor",
        name,
        `${name} ${where} is not part of a Qwen3; leaving it out would change the results.`,
      );
    }
  }
  return problems;
}

/** Bytes of all tensors: about what the packed weights occupy. */
export function weightBytes(file: GgufFile): number {
  let total = 0;
  for (const tensor of file.tensors.values()) total += tensor.byteLength;
  return total;
}

/**
 * Repacks every tensor into the device. All are queued at once and packed one after another, so that only one is in memory
 * twice. When it fails, ending the device ends what is still queued.
 */
export async function loadWeights(
  device: Device,
  file: GgufFile,
  mapping: MappedFile,
  c: Qwen3Config,
  options: { signal?: AbortSignal | undefined; onProgress?: ((loaded: number, total: number) => void) | undefined },
): Promise<{ weights: ModelWeights; matrices: Matrix[] }> {
  const total = weightBytes(file);
  let loaded = 0;
  const report = (tensors: GgufTensor[]) => {
    options.signal?.throwIfAborted();
    for (const tensor of tensors) loaded += tensor.byteLength;
    options.onProgress?.(loaded, total);
  };
  const jobs: Promise<Matrix>[] = [];
  const matrix = async (...names: string[]): Promise<Matrix> => {
    const tensors = names.map((name) => file.tensor(`${name}.weight`));
    const job = device.loadMatrix(tensors.map((tensor) => source(tensor, mapping)));
    jobs.push(job);
    const packed = await job;
    report(tensors);
    return packed;
  };
  const vector = (name: string): Vector => {
    const tensor = file.tensor(`${name}.weight`);
    const norm = device.loadVector(source(tensor, mapping));
    report([tensor]);
    return norm;
  };
  const layer = async (i: number): Promise<LayerWeights> => {
    const b = `blk.${i}.`;
    const [qkv, attnOutput, gateUp, down] = await Promise.all([
      matrix(`${b}attn_q`, `${b}attn_k`, `${b}attn_v`),
      matrix(`${b}attn_output`),
      matrix(`${b}ffn_gate`, `${b}ffn_up`),
      matrix(`${b}ffn_down`),
    ]);
    return {
      attnNorm: vector(`${b}attn_norm`),
      qkv,
      qNorm: vector(`${b}attn_q_norm`),
      kNorm: vector(`${b}attn_k_norm`),
      attnOutput,
      ffnNorm: vector(`${b}ffn_norm`),
      gateUp,
      down,
    };
  };
  try {
    const [embedding, layers, ownHead] = await Promise.all([
      matrix("token_embd"),
      Promise.all(Array.from({ length: c.layers }, (_, i) => layer(i))),
      c.tied ? undefined : matrix("output"),
    ]);
    const weights = { embedding, layers, outputNorm: vector("output_norm"), lmHead: ownHead ?? embedding };
    return { weights, matrices: await Promise.all(jobs) };
  } catch (error) {
    Promise.allSettled(jobs).then((results) => {
      for (const result of results) if (result.status === "fulfilled") result.value.dispose();
    });
    throw error;
  }
}

function source(tensor: GgufTensor, file: MappedFile): TensorSource {
  const [columns = 0, rows = 1] = tensor.dims;
  return {
    name: tensor.name,
    type: weightType(tensor.type as TensorType),
    rows,
    columns,
    data: { file, offset: tensor.offset },
  };
}

/** PQ2_0 is the 128-weight Q2_0 under an id of its own. */
function weightType(type: TensorType): WeightType {
  return type === "PQ2_0" ? "Q2_0_G128" : type;
}
