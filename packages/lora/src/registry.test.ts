import { describe, expect, test } from "vitest";
import { LoraRegistry } from "./registry.js";
import { randomAdapter } from "./test-adapters.js";

describe("LoraRegistry", () => {
  test("keeps adapters by name, in order, each registration under a key of its own", () => {
    const registry = new LoraRegistry();
    const [pirate, robot] = [
      randomAdapter({ targetModules: ["q_proj"] }),
      randomAdapter({ targetModules: ["up_proj"] }),
    ];
    const first = registry.add("pirate", pirate);
    registry.add("robot", robot);
    expect(registry.list().map(({ name }) => name)).toEqual(["pirate", "robot"]);
    expect(registry.get("pirate")).toBe(first);
    expect(registry.byteLength).toBe(pirate.byteLength + robot.byteLength);
    expect(registry.remove("pirate")).toBe(first);
    expect(registry.has("pirate")).toBe(false);
    const second = registry.add("pirate", pirate);
    expect(second.key).not.toBe(first.key);
    expect(registry.list().map(({ name }) => name)).toEqual(["robot", "pirate"]);
  });

  test("tells by layer and module who adapts it", () => {
    const registry = new LoraRegistry();
    registry.add("q", randomAdapter({ targetModules: ["q_proj"] }));
    registry.add("q1", randomAdapter({ targetModules: ["q_proj", "k_proj"], layersToTransform: [1] }));
    expect(registry.targets(1, "q_proj").map(({ name, target }) => [name, target.tensor])).toEqual([
      ["q", "blk.1.attn_q.weight"],
      ["q1", "blk.1.attn_q.weight"],
    ]);
    expect(registry.targets(0, "q_proj").map(({ name }) => name)).toEqual(["q"]);
    expect(registry.targets(0, "k_proj")).toEqual([]);
  });

  test("refuses names that are taken, empty or unknown, and more bytes than allowed; nothing changes then", () => {
    const adapter = randomAdapter();
    const registry = new LoraRegistry({ maxBytes: 1.5 * adapter.byteLength });
    expect(() => registry.get("a")).toThrow(expect.objectContaining({ code: "unknown-adapter", value: "a" }));
    registry.add("a", adapter);
    expect(() => registry.add("a", adapter)).toThrow(expect.objectContaining({ code: "name-taken" }));
    expect(() => registry.add("b", adapter)).toThrow(expect.objectContaining({ code: "over-budget" }));
    expect(() => registry.add(" ", adapter)).toThrow(expect.objectContaining({ code: "invalid-argument" }));
    expect(() => registry.remove("b")).toThrow('no adapter is called "b"; there are "a"');
    expect(registry.list()).toHaveLength(1);
    registry.remove("a");
    registry.add("b", adapter);
    expect(registry.byteLength).toBe(adapter.byteLength);
    expect(() => new LoraRegistry({ maxBytes: Number.NaN })).toThrow(
      expect.objectContaining({ code: "invalid-argument" }),
    );
  });
});
