import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll } from "vitest";

/** For tests: a folder that exists while a test file runs; call with a file's name for its path. */
export function temporaryFolder(): (name: string) => string {
  let folder = "";
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "niwaki-gguf-"));
  });
  afterAll(() => rm(folder, { recursive: true }));
  return (name) => join(folder, name);
}
