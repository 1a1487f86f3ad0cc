import { defineConfig } from "tsup";

export default defineConfig({
  entry: ["src/main.ts", "src/adapters/child.ts", "src/engine/child.ts", "src/engines/child.ts", "src/memory/read.ts"],
  format: "esm",
  target: "node20",
  sourcemap: true,
  clean: true,
});
