import { fileURLToPath } from "node:url";

/** Absolute path of the demo model's GGUF file (482,368 bytes) inside this package. */
export const demoModelPath: string = fileURLToPath(new URL("../niwaki-demo-2.9M-q1_0.gguf", import.meta.url));
