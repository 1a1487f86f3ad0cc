// Builds the tests of the CUDA kernels beside the kernels for the emulator (build:emulated), and runs them.
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { runCxxTests, writeReport } from "./cxx-tests.mjs";
import { ROOT } from "./process.mjs";

const REPORT = "emulated-report.json";

if (`${process.platform}-${process.arch}` === "linux-x64") {
  const files = readdirSync(join(ROOT, "kernels/tests")).filter((file) => /^cuda_.*_test\.cpp$/.test(file));
  await runCxxTests({
    report: REPORT,
    build: "packages/kernels-native/build",
    targets: files.map((file) => file.replace(/\.cpp$/, "")),
    testFolder: "kernels",
    runs: [{ tests: "^cuda_" }],
  });
} else {
  writeReport(REPORT, { passed: 0, failed: 0, skipped: 0 });
}
