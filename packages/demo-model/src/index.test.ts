import { readFileSync } from "node:fs";
import { isAbsolute } from "node:path";
import { expect, test } from "vitest";
import { demoModelPath } from "./index.js";

test("the path is absolute and leads to the whole GGUF file", () => {
  expect(isAbsolute(demoModelPath)).toBe(true);
  const bytes = readFileSync(demoModelPath);
  expect(bytes.byteLength).toBe(482_368);
  expect(bytes.toString("latin1", 0, 4)).toBe("GGUF");
});

test("the file is published with the package", () => {
  const manifest = JSON.parse(readFileSync(new URL("../package.json", import.meta.url), "utf8")) as { files: string[] };
  expect(manifest.files).toContain("niwaki-demo-2.9M-q1_0.gguf");
});
