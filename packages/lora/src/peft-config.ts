import { z } from "zod";
import { atPath, LoraError } from "./errors.js";
import { type LoraConfig, loraConfig } from "./lora-config.js";
import { compilePattern, PatternBudget } from "./pattern.js";

const names = z.union([z.string(), z.array(z.string())]);
const numbers = z.record(z.string(), z.number());

/** What counts in an `adapter_config.json`; everything else is looked at by {@link refuseWhatCannotBeApplied}. */
const schema = z.looseObject({
  peft_type: z.string(),
  r: z.number(),
  lora_alpha: z.number(),
  target_modules: names.nullish(),
  exclude_modules: names.nullish(),
  layers_to_transform: z.union([z.number(), z.array(z.number())]).nullish(),
  layers_pattern: names.nullish(),
  rank_pattern: numbers.nullish(),
  alpha_pattern: numbers.nullish(),
  use_rslora: z.boolean().nullish(),
  use_dora: z.boolean().nullish(),
  bias: z.string().nullish(),
  base_model_name_or_path: z.string().nullish(),
});

/** Keys whose value changes nothing about the adapter as it stands in its file. */
const harmless = new Set([
  ...Object.keys(schema.shape),
  "arrow_config",
  "auto_mapping",
  "corda_config",
  "eva_config",
  "inference_mode",
  "init_lora_weights",
  "lora_dropout",
  "megatron_core",
  "peft_version",
  "qalora_group_size",
  "revision",
  "runtime_config",
  "task_type",
]);

/** Ways to start that leave the base's weights as they are; all others subtract the first B·A from them. */
const plainStarts = new Set<unknown>([true, false, null, undefined, "gaussian", "eva", "orthogonal"]);

/**
 * Reads the text of an `adapter_config.json`.
 *
 * @param path names the file in errors
 * @param architecture of the base, as GGUF names it
 * @throws LoraError `bad-config`; `unsupported` for what a LoRA beside a frozen base cannot be; `wrong-base` where the
 *   configuration names a class of another architecture
 */
export function parsePeftConfig(text: string, path: string, architecture: string): LoraConfig {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new LoraError("bad-config", `is no JSON: ${error instanceof Error ? error.message : error}`, { path });
  }
  const parsed = schema.safeParse(json);
  if (!parsed.success) {
    throw new LoraError("bad-config", `is no LoRA configuration of PEFT: ${z.prettifyError(parsed.error)}`, { path });
  }
  const config = parsed.data;
  refuseWhatCannotBeApplied(config, path);
  checkBaseClass(config.auto_mapping, path, architecture);
  const { layers_to_transform: layers, target_modules: targets } = config;
  if (targets === null || targets === undefined) {
    throw new LoraError("bad-config", "has no target_modules; add the names of the adapted modules", { path });
  }
  const layerList = layers === null || layers === undefined ? null : typeof layers === "number" ? [layers] : layers;
  try {
    if (layerList !== null) checkLayersPattern(config.layers_pattern ?? []);
    return loraConfig({
      rank: config.r,
      alpha: config.lora_alpha,
      targetModules: targets,
      excludeModules: config.exclude_modules ?? [],
      // PEFT takes an empty list for all layers.
      layersToTransform: layerList?.length === 0 ? null : layerList,
      rankPattern: config.rank_pattern ?? {},
      alphaPattern: config.alpha_pattern ?? {},
      useRsLora: config.use_rslora ?? false,
      useDora: config.use_dora ?? false,
      baseModel: config.base_model_name_or_path ?? null,
    });
  } catch (error) {
    throw atPath(error, path);
  }
}

/** The text of an `adapter_config.json` that PEFT reads. */
export function formatPeftConfig(config: LoraConfig): string {
  const { targetModules, excludeModules } = config;
  const json = {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    base_model_name_or_path: config.baseModel,
    inference_mode: true,
    r: config.rank,
    lora_alpha: config.alpha,
    lora_dropout: 0,
    target_modules: targetModules,
    exclude_modules: excludeModules.length === 0 ? null : excludeModules,
    layers_to_transform: config.layersToTransform,
    rank_pattern: config.rankPattern,
    alpha_pattern: config.alphaPattern,
    use_rslora: config.useRsLora,
    use_dora: config.useDora,
    bias: "none",
    fan_in_fan_out: false,
    modules_to_save: null,
  };
  return `${JSON.stringify(json, null, 2)}\n`;
}

function refuseWhatCannotBeApplied(config: Readonly<Record<string, unknown>>, path: string): void {
  const refuse = (message: string, value: unknown) => new LoraError("unsupported", message, { path, value });
  if (config.peft_type !== "LORA") {
    throw refuse(`peft_type is ${JSON.stringify(config.peft_type)}; only LORA can be applied`, config.peft_type);
  }
  const bias = config.bias ?? "none";
  if (bias !== "none")
    throw refuse(`bias is ${JSON.stringify(bias)}; train with bias "none": biases cannot be applied`, bias);
  const start = config.init_lora_weights;
  if (!plainStarts.has(start)) {
    throw refuse(
      `init_lora_weights is ${JSON.stringify(start)}, which changes the base's weights as well; convert the adapter to a ` +
        "plain LoRA when saving it (PEFT: path_initial_model_for_weight_conversion)",
      start,
    );
  }
  for (const [key, value] of Object.entries(config)) {
    if (harmless.has(key) || isUnset(value)) continue;
    throw refuse(`${key} is ${JSON.stringify(value).slice(0, 200)}, which cannot be applied; train without it`, value);
  }
}

function isUnset(value: unknown): boolean {
  if (value === null || value === false) return true;
  return typeof value === "object" && Object.keys(value).length === 0;
}

/** `{ base_model_class: "Qwen3ForCausalLM" }`, where it is given. */
function checkBaseClass(mapping: unknown, path: string, architecture: string): void {
  const name =
    typeof mapping === "object" && mapping !== null ? (mapping as Record<string, unknown>).base_model_class : null;
  if (typeof name !== "string") return;
  const found = /^([A-Za-z0-9]+?)(For[A-Z]\w*|Model)$/.exec(name)?.[1]?.toLowerCase();
  if (found === undefined || found === architecture.replaceAll(/[^a-z0-9]/g, "")) return;
  throw new LoraError(
    "wrong-base",
    `was made for a ${name}, but the base is a ${architecture}; use the adapter's own base`,
    {
      path,
      value: name,
    },
  );
}

/** PEFT's rule: `.*\.PATTERN\.(\d+)\.` gives the layer's number; no pattern stands for any. */
function checkLayersPattern(patterns: string | readonly string[]): void {
  const list = typeof patterns === "string" ? [patterns].filter((pattern) => pattern !== "") : patterns;
  if (list.length === 0) return;
  const budget = new PatternBudget();
  if (
    list.some((pattern) => compilePattern(`.*\\.(${pattern})\\.\\d+\\..*`, budget)("model.layers.0.self_attn.q_proj"))
  )
    return;
  throw new LoraError(
    "bad-config",
    `layers_pattern is ${JSON.stringify(patterns)}, but the base's layers are model.layers.0 and so on`,
    { value: patterns },
  );
}
