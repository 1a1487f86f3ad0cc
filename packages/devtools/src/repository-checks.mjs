import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import getReleasePlan from "@changesets/get-release-plan";
import { formatCxx } from "./cxx-format.mjs";
import { capture, ROOT } from "./process.mjs";
import { checkRelease } from "./release-check.mjs";
import { changesetProblems, lockfileProblems } from "./release-rules.mjs";
import { workspacePackages } from "./workspace.mjs";

const BIN = join(ROOT, "packages/devtools/node_modules/.bin");
const PARENTS = ["packages", "examples"].filter((folder) => existsSync(join(ROOT, folder)));

/**
 * The checks of the repository as a whole: each a name and a function of pnpm's
 * environment to `{ code, output }`.
 */
export const REPOSITORY_CHECKS = [
  [
    "format and lint of TypeScript (Biome)",
    () => capture(join(ROOT, "node_modules/.bin/biome"), ["check", "--error-on-warnings", "--colors=off", "."]),
  ],
  ["format of C++ (clang-format)", () => formatCxx("--dry-run", "--Werror")],
  ["unused files, exports and dependencies (knip)", () => knip()],
  ["files and exports that only tests use (knip)", () => knip("--production", "--include=files,exports,types")],
  [
    "arrows between packages (dependency-cruiser)",
    () => capture(join(BIN, "depcruise"), ["--config", ".dependency-cruiser.cjs", ...PARENTS]),
  ],
  [
    "lockfile without registry addresses",
    () => report(lockfileProblems(readFileSync(join(ROOT, "pnpm-lock.yaml"), "utf8"))),
  ],
  ["changesets and versions", checkChangesets],
  ["packed packages, installed apart from the repository", checkRelease],
];

function knip(...options) {
  return capture(join(BIN, "knip"), ["--no-progress", "--no-config-hints", ...options]);
}

async function checkChangesets() {
  const config = JSON.parse(readFileSync(join(ROOT, ".changeset/config.json"), "utf8"));
  const manifests = workspacePackages(ROOT).map(({ manifest }) => manifest);
  const problems = changesetProblems(config, manifests);
  try {
    await getReleasePlan(ROOT);
  } catch (error) {
    problems.push(error.message);
  }
  return report(problems);
}

function report(problems) {
  return { code: problems.length === 0 ? 0 : 1, output: problems.map((line) => `${line}\n`).join("") };
}
