import { readFileSync } from "node:fs";
import { isAbsolute, join } from "node:path";
import { expect, test } from "vitest";
import { demoAdapterPaths, demoModelPath } from "./index.js";

test("the path is absolute and leads to the whole GGUF file", () => {
  expect(isAbsolute(demoModelPath)).toBe(true);
  const bytes = readFileSync(demoModelPath);
  expect(bytes.byteLength).toBe(482_368);
  expect(bytes.toString("latin1", 0, 4)).toBe("GGUF");
});

test("each adapter is a folder of PEFT's", () => {
  expect(Object.keys(demoAdapterPaths)).toEqual(["pirate", "robot"]);
  for (const path of Object.values(demoAdapterPaths)) {
    const config = JSON.parse(readFileSync(join(path, "adapter_config.json"), "utf8")) as Record<string, unknown>;
    expect(config).toMatchObject({ peft_type: "LORA", r: 8, lora_alpha: 16 });
    expect(readFileSync(join(path, "adapter_model.safetensors")).byteLength).toBe(531_888);
  }
});

test("model and adapters are published with the package", () => {
  const manifest = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as { files: string[] };
  expect(manifest.files).toEqual(expect.arrayContaining(["niwaki-demo-2.9M-q1_0.gguf", "adapters"]));
});
