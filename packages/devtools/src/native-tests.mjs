// Builds the kernels with their tests, address and undefined-behavior sanitizers on, and runs them.
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseCtest } from "./counts.mjs";
import { capture, ROOT } from "./process.mjs";

const REPORT = join(ROOT, "packages/devtools/build/native-report.json");
const BUILD = "kernels/build/asan";
const STEPS = [
  ["cmake", "-S", "kernels", "-B", BUILD, "-DNIWAKI_TESTS=ON", "-DNIWAKI_SANITIZE=ON"],
  ["cmake", "--build", BUILD, "-j2"],
  ["ctest", "--test-dir", BUILD, "--output-on-failure", "--no-tests=error", "-j2"],
];

async function main() {
  rmSync(REPORT, { force: true });
  let last;
  for (const [command, ...args] of STEPS) {
    last = await capture(command, args);
    console.log(`$ ${[command, ...args].join(" ")}\n${last.output}`);
    if (last.code !== 0) break;
  }
  const counts = parseCtest(last.output);
  if (counts) {
    mkdirSync(join(REPORT, ".."), { recursive: true });
    writeFileSync(REPORT, JSON.stringify(counts));
  }
  process.exitCode = last.code;
}

main();
