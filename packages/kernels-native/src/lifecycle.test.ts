import { execFile } from "node:child_process";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";

/** Runs a program of test-programs, which uses the built package. */
function run(program: URL): Promise<{ code: number | string | null; signal: string | null; output: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [fileURLToPath(program)], { timeout: 30_000 }, (error, stdout, stderr) => {
      resolve({
        code: error === null ? 0 : (error.code ?? null),
        signal: error?.signal ?? null,
        output: stdout + stderr,
      });
    });
  });
}

describe("the process", () => {
  it("lives as long as a run is pending", { timeout: 30_000 }, async () => {
    expect(await run(new URL("./test-programs/pending-run.mjs", import.meta.url))).toEqual({
      code: 0,
      signal: null,
      output: "the run ended\n",
    });
  });

  it("ends when only an idle device is left", { timeout: 30_000 }, async () => {
    expect(await run(new URL("./test-programs/idle-device.mjs", import.meta.url))).toEqual({
      code: 0,
      signal: null,
      output: "idle\n",
    });
  });

  it("can exit while runs are in flight", { timeout: 30_000 }, async () => {
    expect(await run(new URL("./test-programs/exit-during-run.mjs", import.meta.url))).toEqual({
      code: 7,
      signal: null,
      output: "",
    });
  });

  it("can die of an exception while a run is in flight", { timeout: 30_000 }, async () => {
    const { code, signal, output } = await run(new URL("./test-programs/throw-during-run.mjs", import.meta.url));
    expect([code, signal]).toEqual([1, null]);
    expect(output).toContain("unhandled on purpose");
  });

  it("survives workers that end with runs in flight", { timeout: 60_000 }, async () => {
    const { code, signal, output } = await run(new URL("./test-programs/worker-teardown.mjs", import.meta.url));
    expect([code, signal]).toEqual([0, null]);
    expect(output.trim().split("\n").sort()).toEqual([
      "dispose 0",
      "done 0",
      "exit 3",
      "main 1",
      "terminate 1",
      "throw 1",
    ]);
  });
});
