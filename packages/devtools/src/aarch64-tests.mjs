// Cross-compiles the kernels with their tests for AArch64 and runs them under qemu, all as a processor that has the
// first version of the instruction set only, the main ones also as one that has everything there is.
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { findAarch64Tools } from "./aarch64-tools.mjs";
import { runCxxTests, writeReport } from "./cxx-tests.mjs";
import { thisMachine } from "./machine.mjs";
import { capture, ROOT } from "./process.mjs";

const REPORT = "aarch64-report.json";
const RUNS = [
  { environment: { QEMU_CPU: "cortex-a72" }, tests: "_test$" },
  { environment: { QEMU_CPU: "max" }, tests: "^(device|linear|rows|exp_neon)_test$" },
];

async function main() {
  const { NIWAKI_AARCH64 } = process.env;
  const tools = NIWAKI_AARCH64 ? JSON.parse(NIWAKI_AARCH64) : await findAarch64Tools(thisMachine(capture));
  if (tools.native) return writeReport(REPORT, { passed: 0, failed: 0, skipped: 0 });
  if (tools.missing) {
    const files = readdirSync(join(ROOT, "kernels/tests")).filter((file) => !file.startsWith("cuda_"));
    const names = files.map((file) => file.replace(/\.cpp$/, ""));
    const skipped = RUNS.flatMap(({ tests }) => names.filter((name) => new RegExp(tests).test(name))).length;
    console.log(`the AArch64 tests are skipped: ${tools.missing}`);
    return writeReport(REPORT, { passed: 0, failed: 0, skipped, reason: tools.missing });
  }
  await runCxxTests({
    report: REPORT,
    build: "kernels/build/aarch64",
    cmake: [
      "-DCMAKE_SYSTEM_NAME=Linux",
      "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
      `-DCMAKE_CXX_COMPILER=${tools.compiler}`,
      // So that the emulator needs no libraries.
      "-DCMAKE_EXE_LINKER_FLAGS=-static",
      `-DCMAKE_CROSSCOMPILING_EMULATOR=${tools.emulator}`,
    ],
    runs: RUNS,
  });
}

main();
