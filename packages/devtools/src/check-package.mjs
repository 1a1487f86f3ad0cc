// Checks the package in the current folder as npm users will get it, after its build.
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { manifestProblems } from "./manifest.mjs";
import { capture, ROOT } from "./process.mjs";
import { readManifest } from "./workspace.mjs";

const FOLDER = process.cwd();
const BIN = join(ROOT, "packages/devtools/node_modules/.bin");

/** Requires a package by its own name from CommonJS; with Node 20.19 that loads ESM, if it has no top-level await. */
const REQUIRE = `require("node:module").createRequire(process.argv[1])(process.argv[2])`;

async function main() {
  const manifest = readManifest(FOLDER);
  const problems = manifestProblems(manifest, (file) => existsSync(join(FOLDER, file)));
  const results = {
    manifest: { code: problems.length, output: problems.map((line) => `${line}\n`).join("") },
    publint: await capture(join(BIN, "publint"), ["run", ".", "--strict"], { cwd: FOLDER }),
    // CommonJS gets the ESM files by require(), which the rule about them does not know of; the rest of the profile holds.
    attw: await capture(
      join(BIN, "attw"),
      ["--pack", ".", "--profile", "node16", "--ignore-rules", "cjs-resolves-to-esm", "--no-color"],
      { cwd: FOLDER },
    ),
    require: await capture(
      process.execPath,
      ["--no-warnings", "-e", REQUIRE, join(FOLDER, "package.json"), manifest.name],
      { cwd: FOLDER },
    ),
  };
  const report = {};
  for (const [name, { code, output }] of Object.entries(results)) {
    report[name] = code === 0;
    if (code !== 0) console.log(`${manifest.name}: ${name} failed\n${output}`);
  }
  mkdirSync(join(FOLDER, "build"), { recursive: true });
  writeFileSync(join(FOLDER, "build/package-report.json"), JSON.stringify(report));
  process.exitCode = Object.values(report).every(Boolean) ? 0 : 1;
}

main();
