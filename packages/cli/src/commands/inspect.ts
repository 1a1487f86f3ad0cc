import { GgufFile, type GgufTensor } from "@niwaki/gguf";
import { type Examination, examineModel, kvCacheBytes } from "@niwaki/qwen3-model";
import { Command } from "commander";
import { wholeNumber } from "../flags.js";
import { size } from "../units.js";

export function inspectCommand(): Command {
  return new Command("inspect")
    .description("Show what a GGUF is: shape, tensor types, memory, and what in it cannot be run and why.")
    .argument("<model>", "a GGUF file")
    .option(
      "-c, --ctx-size <tokens>",
      "tokens of context to give the memory for; what the model was made for if absent",
      wholeNumber,
    )
    .option("--json", "print one JSON object")
    .action(inspect);
}

async function inspect(path: string, flags: { ctxSize?: number; json?: boolean }): Promise<void> {
  const file = await GgufFile.open(path);
  const found = describe(file, examineModel(file), flags.ctxSize);
  if (flags.json) {
    console.log(JSON.stringify(found, null, 2));
  } else {
    console.log(format(found));
  }
}

type Description = ReturnType<typeof describe>;

function describe(file: GgufFile, { config, tokenizer, problems }: Examination, context: number | undefined) {
  const types = new Map<string, { tensors: number; weights: number; bytes: number }>();
  for (const tensor of file.tensors.values()) {
    const sum = types.get(tensor.typeName) ?? { tensors: 0, weights: 0, bytes: 0 };
    sum.tensors++;
    sum.weights += weights(tensor);
    sum.bytes += tensor.byteLength;
    types.set(tensor.typeName, sum);
  }
  const contextLength = context ?? config?.contextLength;
  const bytes = [...types.values()].reduce((sum, type) => sum + type.bytes, 0);
  return {
    path: file.path,
    bytes: file.byteLength,
    version: file.version,
    name: optionalString(file, "general.name"),
    architecture: optionalString(file, "general.architecture"),
    parameters: [...types.values()].reduce((sum, type) => sum + type.weights, 0),
    shape: config,
    tokens: tokenizer?.tokens.length ?? null,
    chatTemplate: tokenizer?.chatTemplate !== undefined,
    types: [...types].map(([type, sums]) => ({ type, ...sums })).sort((a, b) => b.bytes - a.bytes),
    memory:
      config === null || contextLength === undefined
        ? null
        : {
            contextLength,
            weights: bytes,
            kvF16: kvCacheBytes(config, contextLength, "f16"),
            kvF32: kvCacheBytes(config, contextLength, "f32"),
            kvQ8: kvCacheBytes(config, contextLength, "q8"),
          },
    runs: problems.length === 0,
    problems: problems.map((problem) => problem.message),
  };
}

function format(d: Description): string {
  const lines = [
    `${d.path}`,
    `  GGUF version ${d.version}, ${size(d.bytes)}, ${count(d.parameters)} parameters`,
    `  ${d.name ?? "unnamed"}, architecture ${d.architecture ?? "not given"}`,
  ];
  if (d.shape !== null) {
    const s = d.shape;
    const scaling = s.rope.scaling === undefined ? "" : `, ${s.rope.scaling.type} × ${s.rope.scaling.factor}`;
    lines.push(
      "",
      "shape",
      `  layers        ${s.layers}`,
      `  hidden        ${s.hidden}`,
      `  feed-forward  ${s.ffn}`,
      `  heads         ${s.heads} query, ${s.kvHeads} key/value, of ${s.headDim}`,
      `  vocabulary    ${s.vocabulary}, LM head ${s.tied ? "tied to the embedding" : "of its own"}`,
      `  context       ${s.contextLength} tokens, RoPE base ${s.rope.base}${scaling}`,
      `  chat template ${d.chatTemplate ? "yes" : "no"}`,
    );
  }
  lines.push("", "tensors");
  const width = Math.max(...d.types.map(({ type }) => type.length), 4);
  for (const { type, tensors, weights, bytes } of d.types) {
    const bits = ((8 * bytes) / weights).toFixed(2);
    lines.push(
      `  ${type.padEnd(width)}  ${String(tensors).padStart(5)}  ${size(bytes).padStart(9)}  ${bits} bits a weight`,
    );
  }
  if (d.memory !== null) {
    const { contextLength, weights, kvF16, kvF32, kvQ8 } = d.memory;
    lines.push(
      "",
      `memory with ${contextLength} tokens of context`,
      `  weights       ${size(weights)}`,
      `  KV cache      ${size(kvF16)} as f16, ${size(kvF32)} as f32, ${size(kvQ8)} as q8`,
    );
  }
  lines.push("", d.runs ? "runs: yes" : "runs: no");
  for (const problem of d.problems) lines.push(`  - ${problem}`);
  return lines.join("\n");
}

function weights(tensor: GgufTensor): number {
  return tensor.dims.reduce((product, dim) => product * dim, 1);
}

function optionalString(file: GgufFile, key: string): string | null {
  return file.has(key) ? file.string(key) : null;
}

function count(n: number): string {
  for (const [unit, factor] of [
    ["billion", 1e9],
    ["million", 1e6],
  ] as const) {
    if (n >= factor) return `${(n / factor).toFixed(2)} ${unit}`;
  }
  return String(n);
}
