import { provideAarch64Tools } from "./aarch64-tools.mjs";
import { total } from "./counts.mjs";
import { thisMachine } from "./machine.mjs";
import { capture } from "./process.mjs";
import { setUp } from "./set-up.mjs";
import { SetUpError } from "./set-up-error.mjs";

async function main() {
  const results = [];
  try {
    const { turbo, pnpmEnvironment } = await setUp({ fresh: true });
    // Only now: what these import is installed by the set-up.
    const { runTasks } = await import("./task-results.mjs");
    const { REPOSITORY_CHECKS } = await import("./repository-checks.mjs");
    // Known to turbo, so that tests which were skipped run once the tools are there.
    const tools = await provideAarch64Tools(thisMachine(capture), (line) => console.error(`niwaki: ${line}`));
    results.push(...(await runTasks(turbo, { NIWAKI_AARCH64: JSON.stringify(tools) })));
    for (const [name, check] of REPOSITORY_CHECKS) {
      const { code, output } = await check(pnpmEnvironment);
      if (code !== 0) console.log(`\n${name} failed:\n${output.trimEnd()}`);
      results.push({ name, passed: code === 0 ? 1 : 0, failed: code === 0 ? 0 : 1 });
    }
  } catch (error) {
    console.log(error instanceof SetUpError ? error.message : error);
    results.push({ name: "set-up", passed: 0, failed: 1 });
  }
  summarize(results);
}

function summarize(results) {
  const { passed, failed, skipped } = total(results);
  console.log("");
  for (const result of results) {
    const state = result.failed > 0 ? "FAILED" : "ok    ";
    const note = [`${result.passed} passed`];
    if (result.failed > 0) note.push(`${result.failed} failed`);
    if (result.skipped > 0) note.push(`${result.skipped} skipped${result.reason ? ` (${result.reason})` : ""}`);
    console.log(`${state} ${result.name}: ${note.join(", ")}`);
    for (const failure of result.failures ?? []) console.log(`       ${failure}`);
  }
  if (skipped > 0) console.log(`${skipped} skipped`);
  console.log(`${passed} passed, ${failed} failed`);
  process.exitCode = failed === 0 ? 0 : 1;
}

main();
