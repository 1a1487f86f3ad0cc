import { describe, expect, test } from "vitest";
import { configOf, type LoraConfig, loraConfig, planTargets } from "./lora-config.js";
import { loraModules } from "./modules.js";
import { tinyShape } from "./test-adapters.js";

const plan = (options: Partial<LoraConfig>) => planTargets(loraConfig(options), tinyShape);
const places = (options: Partial<LoraConfig>) => plan(options).map(({ layer, module }) => `${layer} ${module}`);

describe("loraConfig", () => {
  test("has PEFT's defaults: rank 8, alpha 8, seven projections of every layer", () => {
    const planned = plan({});
    expect(planned).toHaveLength(7 * tinyShape.layers);
    expect(planned[8]).toEqual({
      layer: 1,
      module: "k_proj",
      tensor: "blk.1.attn_k.weight",
      inputs: 12,
      outputs: 4,
      rank: 8,
      scale: 1,
    });
  });

  test.each([
    ["a rank of 0", { rank: 0 }],
    ["half a rank", { rankPattern: { q_proj: 1.5 } }],
    ["an alpha that is no number", { alpha: Number.NaN }],
    ["an alpha beyond float32", { alphaPattern: { q_proj: 1e39 } }],
    ["layers beside a regular expression", { targetModules: ".*", layersToTransform: [0] }],
    ["a negative layer", { layersToTransform: [-1] }],
  ])("refuses %s", (_, options) => {
    expect(() => loraConfig(options)).toThrow(expect.objectContaining({ code: "bad-config" }));
  });
});

describe("planTargets", () => {
  test("a list has names, ends of paths and whole paths; no parts of names", () => {
    expect(places({ targetModules: ["q_proj"] })).toEqual(["0 q_proj", "1 q_proj", "2 q_proj"]);
    expect(places({ targetModules: ["mlp.up_proj", "model.layers.1.self_attn.o_proj", "proj", "1"] })).toEqual([
      "0 up_proj",
      "1 o_proj",
      "1 up_proj",
      "2 up_proj",
    ]);
  });

  test("a text is a regular expression for the whole path, or all-linear", () => {
    expect(places({ targetModules: ".*layers\\.[12]\\.mlp\\.(up|down)_proj" })).toEqual([
      "1 up_proj",
      "1 down_proj",
      "2 up_proj",
      "2 down_proj",
    ]);
    expect(places({ targetModules: "all-linear" })).toEqual(places({}));
    expect(() => places({ targetModules: "q_proj" })).toThrow("names no module");
  });

  test("modules and layers can be left out", () => {
    expect(
      places({ targetModules: ["q_proj", "v_proj"], excludeModules: ["v_proj"], layersToTransform: [2, 0] }),
    ).toEqual(["0 q_proj", "2 q_proj"]);
    expect(places({ targetModules: ".*self_attn.*", excludeModules: ".*\\.[02]\\..*|.*[kvo]_proj" })).toEqual([
      "1 q_proj",
    ]);
  });

  test("patterns match the end of a path, after a dot; the first that matches counts", () => {
    const ranks = (rankPattern: Record<string, number>) =>
      plan({ targetModules: ["q_proj", "up_proj"], rankPattern }).map(({ rank }) => rank);
    expect(ranks({ q_proj: 2 })).toEqual([2, 8, 2, 8, 2, 8]);
    expect(ranks({ "1.self_attn.q_proj": 3, q_proj: 2 })).toEqual([2, 8, 3, 8, 2, 8]);
    expect(ranks({ "q_proj|.*up_proj": 2, up_proj: 5 })).toEqual([2, 2, 2, 2, 2, 2]);
    expect(ranks({ "^model.layers.2.*": 4 })).toEqual([8, 8, 8, 8, 4, 4]);
    expect(ranks({ proj: 2, _proj: 3, "[qx]_proj": 6 })).toEqual([6, 8, 6, 8, 6, 8]);
    expect(ranks({ ".1.mlp.up_proj": 2 })).toEqual([8, 8, 8, 8, 8, 8]);
    expect(ranks({ "model.layers.1.mlp.up_proj": 2 })).toEqual([8, 8, 8, 2, 8, 8]);
  });

  test("scales are alpha / rank, or alpha / √rank, in float32", () => {
    const scales = (options: Partial<LoraConfig>) =>
      plan({
        targetModules: ["q_proj", "k_proj"],
        layersToTransform: [1],
        rankPattern: { k_proj: 3 },
        alpha: 16,
        ...options,
      }).map(({ scale }) => scale);
    expect(scales({})).toEqual([2, Math.fround(16 / 3)]);
    expect(scales({ useRsLora: true })).toEqual([Math.fround(16 / Math.sqrt(8)), Math.fround(16 / Math.sqrt(3))]);
    expect(scales({ alphaPattern: { k_proj: 6, q_proj: 0 } })).toEqual([0, 2]);
  });
});

test("configOf gives a configuration with exactly the ranks and scales it was given", () => {
  for (const options of [
    {},
    { rank: 3, alpha: 0.1 },
    {
      useRsLora: true,
      rankPattern: { "mlp.up_proj": 5, "layers.1.self_attn.q_proj": 7 },
      alphaPattern: { down_proj: 1.3 },
    },
    { targetModules: ["q_proj"], layersToTransform: [1] },
    { targetModules: ".*\\.1\\..*|.*\\.v_proj" },
  ]) {
    const planned = plan(options);
    expect(planTargets(configOf(planned, tinyShape), tinyShape)).toEqual(planned);
  }
  expect(configOf(plan({ targetModules: ["up_proj", "q_proj"] }), tinyShape).targetModules).toEqual([
    "q_proj",
    "up_proj",
  ]);
  expect(configOf(plan({}), tinyShape).targetModules).toEqual(loraModules);
});
