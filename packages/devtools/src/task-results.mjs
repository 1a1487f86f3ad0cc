import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { countVitest, parseNodeTest } from "./counts.mjs";
import { ROOT } from "./process.mjs";
import { workspacePackages } from "./workspace.mjs";

const RUNS = ".turbo/runs";
const TASKS = ["typecheck", "test", "test:native", "test:emulated", "test:aarch64", "check:package"];
/** Those of one package, which no other must have. */
const CXX_TASKS = ["test:native", "test:emulated", "test:aarch64"];
const TEST_LOG = ".turbo/turbo-test.log";
const REPORTS = {
  test: "test-report.json",
  "test:native": "native-report.json",
  "test:emulated": "emulated-report.json",
  "test:aarch64": "aarch64-report.json",
  "check:package": "package-report.json",
};

/**
 * Runs every check that is a turbo task, going on after failures; the output of the failing ones is printed as it
 * comes.
 *
 * @param environment variables for the tasks, those that turbo.json names
 * @returns one result for each task of each package: `{ name, passed, failed, skipped }`, with the `failures` and the
 *   `reason` why tests were skipped where a report says so
 */
export async function runTasks(turbo, environment) {
  const packages = workspacePackages(ROOT);
  // What an earlier run left must not be taken for this run's: turbo puts back the reports of tasks that it skips.
  for (const { folder } of packages) {
    const reports = Object.values(REPORTS).map((name) => `build/${name}`);
    for (const path of [...reports, TEST_LOG]) rmSync(join(ROOT, folder, path), { force: true });
  }
  rmSync(join(ROOT, RUNS), { recursive: true, force: true });
  const flags = ["--summarize", "--continue=always", "--output-logs=errors-only"];
  await turbo(["run", ...TASKS, ...flags], { stream: true, environment });
  const summary = readSummary();
  return packages.flatMap(({ folder, manifest }) =>
    expectedTasks(manifest).map((task) => {
      const run = summary.find(({ taskId }) => taskId === `${manifest.name}#${task}`);
      return { name: `${task} ${manifest.name}`, ...taskResult(run, readReport(folder, task), task) };
    }),
  );
}

/**
 * The tasks that a package must have, and those it has beside them. A package of one platform holds a binary only, which
 * the check of the packed packages runs.
 */
export function expectedTasks(manifest) {
  if (manifest.os) return [];
  return TASKS.filter((task) => {
    if (manifest.scripts?.[task]) return true;
    return !manifest.private && !CXX_TASKS.includes(task);
  });
}

/**
 * The result of one task from turbo's record of it and the report that it wrote. Without a report the task counts as
 * one check, and a task that failed though its report has no failure is one failure more: nothing fails unseen.
 */
export function taskResult(run, report, task) {
  const ok = run?.execution ? run.execution.exitCode === 0 : run?.cache?.status === "HIT";
  const counts = report ? countReport(report, task) : { passed: ok && !REPORTS[task] ? 1 : 0, failed: 0, skipped: 0 };
  if ((!ok || (!report && REPORTS[task])) && counts.failed === 0) counts.failed = 1;
  return counts;
}

function countReport(report, task) {
  if (task !== "check:package") return report;
  const checks = Object.values(report);
  const passed = checks.filter(Boolean).length;
  return { passed, failed: checks.length - passed, skipped: 0 };
}

function readSummary() {
  const folder = join(ROOT, RUNS);
  const [file] = existsSync(folder) ? readdirSync(folder).filter((name) => name.endsWith(".json")) : [];
  return file ? JSON.parse(readFileSync(join(folder, file), "utf8")).tasks : [];
}

function readReport(folder, task) {
  const path = REPORTS[task] && join(ROOT, folder, "build", REPORTS[task]);
  if (path && existsSync(path)) {
    const report = JSON.parse(readFileSync(path, "utf8"));
    return task === "test" ? countVitest(report) : report;
  }
  // An example may do with Node's own test runner, which writes no report but ends with its counts.
  const log = join(ROOT, folder, TEST_LOG);
  return task === "test" && existsSync(log) ? parseNodeTest(readFileSync(log, "utf8")) : undefined;
}
