/** The seven projections of a layer that can be adapted, by their names in PEFT, in the order of a forward pass. */
export const loraModules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] as const;

/** A projection of a layer. */
export type LoraModule = (typeof loraModules)[number];

/** Its place in a layer of the Hugging Face model, and the name of its tensor in GGUF. */
const names: Readonly<Record<LoraModule, { readonly path: string; readonly tensor: string }>> = {
  q_proj: { path: "self_attn.q_proj", tensor: "attn_q" },
  k_proj: { path: "self_attn.k_proj", tensor: "attn_k" },
  v_proj: { path: "self_attn.v_proj", tensor: "attn_v" },
  o_proj: { path: "self_attn.o_proj", tensor: "attn_output" },
  gate_proj: { path: "mlp.gate_proj", tensor: "ffn_gate" },
  up_proj: { path: "mlp.up_proj", tensor: "ffn_up" },
  down_proj: { path: "mlp.down_proj", tensor: "ffn_down" },
};

/** A projection of a certain layer. */
export interface ModulePlace {
  readonly layer: number;
  readonly module: LoraModule;
}

/** `model.layers.3.self_attn.q_proj`: the module's path in the Hugging Face model, which PEFT's patterns match. */
export function modulePath({ layer, module }: ModulePlace): string {
  return `model.layers.${layer}.${names[module].path}`;
}

/** `blk.3.attn_q.weight`: the tensor's name in GGUF. */
export function tensorName({ layer, module }: ModulePlace): string {
  return `blk.${layer}.${names[module].tensor}.weight`;
}

const placesByName = {
  path: new Map(loraModules.map((module) => [names[module].path, module])),
  tensor: new Map(loraModules.map((module) => [names[module].tensor, module])),
};

/** The module at a path of the Hugging Face model, or undefined. */
export function parseModulePath(path: string): ModulePlace | undefined {
  return place(/^model\.layers\.(0|[1-9]\d{0,5})\.(.+)$/.exec(path), placesByName.path);
}

/** The module whose weight has this name in GGUF, or undefined. */
export function parseTensorName(name: string): ModulePlace | undefined {
  return place(/^blk\.(0|[1-9]\d{0,5})\.(.+)\.weight$/.exec(name), placesByName.tensor);
}

function place(match: RegExpExecArray | null, modules: ReadonlyMap<string, LoraModule>): ModulePlace | undefined {
  const module = match === null ? undefined : modules.get(match[2]!);
  return module === undefined ? undefined : { layer: Number(match![1]), module };
}
