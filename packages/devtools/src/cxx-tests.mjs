import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseCtest, total } from "./counts.mjs";
import { capture, ROOT } from "./process.mjs";

const REPORTS = join(ROOT, "packages/devtools/build");

/** Writes the report of a task: what `countReport` reads. */
export function writeReport(name, counts) {
  mkdirSync(REPORTS, { recursive: true });
  writeFileSync(join(REPORTS, name), JSON.stringify(counts));
}

/**
 * Builds the kernels with their tests, runs these and writes the sum of the counts as the report `report`. Prints all
 * output; sets the exit code of this process.
 *
 * @param options `build`: the build folder; `cmake`: arguments beside it, or undefined where it is configured already;
 *   `targets`: of the build, if not all; `testFolder`: within the build folder; `runs`: each the variables of its
 *   `environment` and the names of its `tests`, a regular expression.
 */
export async function runCxxTests({ report, build, cmake, targets = [], testFolder = ".", runs = [{ tests: "." }] }) {
  rmSync(join(REPORTS, report), { force: true });
  const run = async (command, args, environment = {}) => {
    const result = await capture(command, args, { env: { ...process.env, ...environment } });
    const variables = Object.entries(environment).map(([name, value]) => `${name}=${value}`);
    console.log(`$ ${[...variables, command, ...args].join(" ")}\n${result.output}`);
    return result;
  };
  let code = 0;
  if (cmake) ({ code } = await run("cmake", ["-S", "kernels", "-B", build, "-DNIWAKI_TESTS=ON", ...cmake]));
  const chosen = targets.length > 0 ? ["--target", ...targets] : [];
  if (code === 0) ({ code } = await run("cmake", ["--build", build, "-j2", ...chosen]));
  const counts = [];
  for (const { environment, tests } of code === 0 ? runs : []) {
    const args = ["--test-dir", join(build, testFolder), "-R", tests, "--output-on-failure", "--no-tests=error", "-j2"];
    const result = await run("ctest", args, environment);
    counts.push(parseCtest(result.output));
    if (result.code !== 0) code = result.code;
  }
  if (counts.length > 0 && counts.every(Boolean)) writeReport(report, total(counts));
  process.exitCode = code;
}
