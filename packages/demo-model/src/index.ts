import { fileURLToPath } from "node:url";

/** Absolute path of the demo model's GGUF file (482,368 bytes) inside this package. */
export const demoModelPath: string = fileURLToPath(new URL("../niwaki-demo-2.9M-q1_0.gguf", import.meta.url));

/** Absolute paths of the demo model's LoRA adapters inside this package: folders as PEFT saves them. */
export const demoAdapterPaths: Readonly<Record<"pirate" | "robot", string>> = {
  pirate: fileURLToPath(new URL("../adapters/pirate", import.meta.url)),
  robot: fileURLToPath(new URL("../adapters/robot", import.meta.url)),
};
