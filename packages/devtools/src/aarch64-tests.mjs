// Cross-compiles the kernels with their tests for AArch64 and runs them under qemu, as a processor that has the first
// version of the instruction set only and as one that has all of them.
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { findAarch64Tools } from "./aarch64-tools.mjs";
import { runCxxTests, writeReport } from "./cxx-tests.mjs";
import { thisMachine } from "./machine.mjs";
import { capture, ROOT } from "./process.mjs";

const REPORT = "aarch64-report.json";
const PROCESSORS = ["cortex-a72", "max"];

async function main() {
  const { NIWAKI_AARCH64 } = process.env;
  const tools = NIWAKI_AARCH64 ? JSON.parse(NIWAKI_AARCH64) : await findAarch64Tools(thisMachine(capture));
  if (tools.native) return writeReport(REPORT, { passed: 0, failed: 0, skipped: 0 });
  if (tools.missing) {
    const programs = readdirSync(join(ROOT, "kernels/tests")).filter((name) => name.endsWith("_test.cpp"));
    const skipped = programs.length * PROCESSORS.length;
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
    environments: PROCESSORS.map((name) => ({ QEMU_CPU: name })),
  });
}

main();
