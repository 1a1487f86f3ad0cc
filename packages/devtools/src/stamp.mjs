import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { contentFingerprint, listFiles, statFingerprint } from "./fingerprint.mjs";
import { workspacePackages } from "./workspace.mjs";

const STAMP = "node_modules/.niwaki/set-up.json";
const ROOT_CONFIGS = [
  "package.json",
  "pnpm-lock.yaml",
  "pnpm-workspace.yaml",
  "tsconfig.base.json",
  "turbo.json",
  ".npmrc",
];
const INSTALL_CONFIGS = ["package.json", "pnpm-lock.yaml", "pnpm-workspace.yaml", ".npmrc"];

/** Folders made by a build or an install, and what only tests read: none of it goes into what `npm start` runs. */
const NOT_SOURCE = new Set(["node_modules", "dist", "build", "build-cuda", "coverage", ".turbo", "fixtures", "tests"]);

/**
 * What the tree asks for: `install` changes when other packages must be installed, `build` when something must be
 * built again. Both are made from contents, so that switching a branch there and back asks for nothing.
 *
 * @param facts what outside the tree matters, as strings (the version of Node.js, the compiler chosen).
 */
export function wanted(root, facts) {
  const packages = workspacePackages(root);
  const manifests = packages.map(({ folder }) => `${folder}/package.json`);
  const installFiles = listFiles(root, [...INSTALL_CONFIGS, ...manifests]);
  const sources = listFiles(root, [...ROOT_CONFIGS, "kernels", "packages", "examples"], isNotSource);
  const outside = `${JSON.stringify(facts)}\n`;
  return {
    install: outside + contentFingerprint(root, installFiles),
    build: outside + contentFingerprint(root, sources),
  };
}

/**
 * What is there: `installed` changes when an install ran or its result was deleted, `built` when any output of a build
 * was written or deleted.
 */
export function present(root) {
  const packages = workspacePackages(root);
  const linked = packages.map(({ folder }) => (existsSync(join(root, folder, "node_modules")) ? `${folder}\n` : ""));
  const outputs = packages.flatMap(({ folder }) => [`${folder}/dist`, `${folder}/build/Release`]);
  const built = listFiles(root, outputs, (name, path) => path.includes("/build/Release/") && !name.endsWith(".node"));
  const installed = listFiles(root, ["node_modules/.modules.yaml"]);
  return {
    installed: linked.join("") + statFingerprint(root, installed),
    built: statFingerprint(root, built),
  };
}

/** The stamp of the last set-up that succeeded, or an empty object. A stamp that cannot be read is no stamp. */
export function readStamp(root) {
  try {
    return JSON.parse(readFileSync(join(root, STAMP), "utf8")) ?? {};
  } catch {
    return {};
  }
}

/** Forgets the stamp: to be called before any work, so that work cut short is never taken for done. */
export function clearStamp(root) {
  rmSync(join(root, STAMP), { force: true });
}

/** Writes the stamp whole or not at all. */
export function writeStamp(root, stamp) {
  const path = join(root, STAMP);
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(`${path}.new`, JSON.stringify(stamp));
  renameSync(`${path}.new`, path);
}

function isNotSource(name) {
  return NOT_SOURCE.has(name) || name.endsWith(".md") || /\.test\.\w+$/.test(name);
}
