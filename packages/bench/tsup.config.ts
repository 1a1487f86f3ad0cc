import { defineConfig } from "tsup";

export default defineConfig({
  entry: ["src/main.ts", "src/load/niwaki.ts", "src/load/node-llama-cpp.ts"],
  format: "esm",
  target: "node20",
  sourcemap: true,
  clean: true,
});
