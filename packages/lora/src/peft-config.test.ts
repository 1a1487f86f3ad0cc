import { describe, expect, test } from "vitest";
import { loraConfig } from "./lora-config.js";
import { formatPeftConfig, parsePeftConfig } from "./peft-config.js";

const least = { peft_type: "LORA", r: 4, lora_alpha: 8, target_modules: ["q_proj"] };
const parse = (extra: Record<string, unknown> = {}, architecture = "qwen3") =>
  parsePeftConfig(JSON.stringify({ ...least, ...extra }), "adapter_config.json", architecture);

describe("parsePeftConfig", () => {
  test("takes what counts, and PEFT's defaults for the rest", () => {
    expect(parse()).toEqual(loraConfig({ rank: 4, alpha: 8, targetModules: ["q_proj"] }));
    const all = parse({
      target_modules: ["up_proj"],
      exclude_modules: "x",
      layers_to_transform: 3,
      layers_pattern: ["blocks", "layers"],
      rank_pattern: { q_proj: 2 },
      alpha_pattern: { q_proj: 0.5 },
      use_rslora: true,
      use_dora: true,
      base_model_name_or_path: "some/base",
    });
    expect(all).toEqual({
      rank: 4,
      alpha: 8,
      targetModules: ["up_proj"],
      excludeModules: "x",
      layersToTransform: [3],
      rankPattern: { q_proj: 2 },
      alphaPattern: { q_proj: 0.5 },
      useRsLora: true,
      useDora: true,
      baseModel: "some/base",
    });
    expect(parse({ layers_to_transform: [] }).layersToTransform).toBeNull();
  });

  test("takes what it wrote", () => {
    for (const config of [
      loraConfig(),
      loraConfig({ targetModules: ".*", excludeModules: ["k_proj"], rankPattern: { "a.b": 3 }, useRsLora: true }),
      loraConfig({ layersToTransform: [0, 2], alphaPattern: { q_proj: 1 / 3 }, useDora: true, baseModel: "base" }),
    ]) {
      expect(parsePeftConfig(formatPeftConfig(config), "adapter_config.json", "qwen3")).toEqual(config);
    }
  });

  test.each([
    ["bad-config", { r: "8" }],
    ["bad-config", { r: 0 }],
    ["bad-config", { lora_alpha: null }],
    ["bad-config", { target_modules: null }],
    ["bad-config", { target_modules: [1] }],
    ["bad-config", { rank_pattern: { q_proj: "2" } }],
    ["bad-config", { layers_to_transform: [0], layers_pattern: "blocks" }],
    ["bad-config", { layers_to_transform: [0], target_modules: ".*" }],
    ["unsupported", { peft_type: "IA3" }],
    ["unsupported", { bias: "all" }],
    ["unsupported", { bias: "lora_only" }],
    ["unsupported", { lora_bias: true }],
    ["unsupported", { modules_to_save: ["lm_head"] }],
    ["unsupported", { fan_in_fan_out: true }],
    ["unsupported", { init_lora_weights: "pissa" }],
    ["unsupported", { init_lora_weights: "olora" }],
    ["unsupported", { trainable_token_indices: [1] }],
    ["unsupported", { alora_invocation_tokens: [1, 2] }],
    ["unsupported", { layer_replication: [[0, 2]] }],
    ["unsupported", { something_new: 1 }],
    ["wrong-base", { auto_mapping: { base_model_class: "LlamaForCausalLM" } }],
  ])("%s: %j", (code, extra) => {
    expect(() => parse(extra)).toThrow(expect.objectContaining({ code, path: "adapter_config.json" }));
  });

  test("takes what changes nothing", () => {
    const harmless = {
      lora_dropout: 0.1,
      init_lora_weights: "gaussian",
      modules_to_save: [],
      loftq_config: {},
      lora_bias: false,
    };
    expect(parse({ ...harmless, auto_mapping: { base_model_class: "Qwen3ForCausalLM" }, new_key: null })).toEqual(
      parse(),
    );
    expect(parse({ auto_mapping: { base_model_class: "Qwen3MoeForCausalLM" } }, "qwen3moe")).toEqual(parse());
  });

  test.each(["", "{", "[]", "null", '"x"'])("refuses %j", (text) => {
    expect(() => parsePeftConfig(text, "c.json", "qwen3")).toThrow(expect.objectContaining({ code: "bad-config" }));
  });
});
