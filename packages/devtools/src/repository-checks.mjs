import { existsSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import getReleasePlan from "@changesets/get-release-plan";
import { listFiles } from "./fingerprint.mjs";
import { capture, ROOT } from "./process.mjs";
import { changesetProblems, lockfileProblems } from "./release-rules.mjs";
import { workspacePackages } from "./workspace.mjs";

const BIN = join(ROOT, "packages/devtools/node_modules/.bin");
const PARENTS = ["packages", "examples"].filter((folder) => existsSync(join(ROOT, folder)));
const MADE = new Set(["node_modules", "build", "dist"]);

/** The checks of the repository as a whole: each a name and a function to `{ code, output }`. */
export const REPOSITORY_CHECKS = [
  [
    "format and lint of TypeScript (Biome)",
    () => capture(join(ROOT, "node_modules/.bin/biome"), ["check", "--error-on-warnings", "--colors=off", "."]),
  ],
  ["format of C++ (clang-format)", checkCxxFormat],
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
];

function knip(...options) {
  return capture(join(BIN, "knip"), ["--no-progress", "--no-config-hints", ...options]);
}

async function checkCxxFormat() {
  const isCxx = (name) => MADE.has(name) || (name.includes(".") && !/\.(cpp|hpp|h|cc|cu|cuh)$/.test(name));
  const natives = workspacePackages(ROOT).map(({ folder }) => `${folder}/native`);
  const files = listFiles(ROOT, ["kernels", ...natives], isCxx).filter((path) => path.includes("."));
  if (files.length === 0) return { code: 1, output: "no C++ files were found under kernels/ and packages/*/native\n" };
  const command = clangFormat();
  const { code, output } = await capture(command, ["--dry-run", "--Werror", ...files]);
  return { code, output: code === 127 ? `${output}${command} cannot be run on this machine\n` : output };
}

/** The binary of the npm package; it has none for Linux on ARM, where the machine's own (version 15) is used. */
function clangFormat() {
  const { platform, arch } = process;
  if (platform === "linux" && arch !== "x64") return "clang-format";
  const manifest = createRequire(import.meta.url).resolve("clang-format/package.json");
  return join(manifest, `../bin/${platform}_x64/clang-format`);
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
