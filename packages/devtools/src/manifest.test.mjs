import { expect, it } from "vitest";
import { manifestProblems } from "./manifest.mjs";

const GOOD = {
  name: "@niwaki/good",
  version: "0.0.0",
  description: "A package.",
  license: "Apache-2.0",
  type: "module",
  sideEffects: false,
  engines: { node: "^20.19.0 || >=22.12.0" },
  exports: {
    ".": { types: "./dist/index.d.ts", default: "./dist/index.js" },
    "./package.json": "./package.json",
  },
  files: ["dist", "README.md", "LICENSE"],
  publishConfig: { access: "public" },
  scripts: { build: "tsup" },
  dependencies: { "@niwaki/gguf": "workspace:*", commander: "catalog:" },
};
const problemsOf = (changes, exists = () => true) => manifestProblems({ ...GOOD, ...changes }, exists);

it("finds nothing in a good manifest", () => {
  expect(problemsOf({})).toEqual([]);
});

it.each([
  [{ license: "MIT" }, 'license is not "Apache-2.0"'],
  [{ type: "commonjs" }, 'type is not "module"'],
  [{ engines: { node: ">=18" } }, "engines.node is not ^20.19.0 || >=22.12.0"],
  [{ publishConfig: undefined }, "publishConfig.access is not public"],
  [{ description: undefined }, "description is missing"],
  [{ files: ["dist", "LICENSE"] }, "files does not list README.md"],
  [{ exports: { "./package.json": "./package.json" } }, 'exports has no "."'],
  [{ exports: { ".": { default: "./dist/index.js" } } }, 'exports["."] has no types and default'],
  [{ exports: { ".": "./dist/index.js" } }, 'exports["."] has no types and default'],
  [
    { exports: { ".": { types: "./a.d.ts", import: "./a.js", default: "./a.js" } } },
    'exports["."] tells require from import: a package is ESM only',
  ],
  [
    { scripts: { postinstall: "node build.js" } },
    "scripts.postinstall would run on the machine of whoever installs the package",
  ],
  [{ dependencies: { left: "^1.0.0" } }, "dependency left is neither from the workspace nor from the catalog"],
])("reports %j", (changes, problem) => {
  expect(problemsOf(changes)).toEqual([problem]);
});

it("reports a missing sideEffects and a missing file", () => {
  const { sideEffects, ...rest } = GOOD;
  expect(manifestProblems(rest, () => true)).toEqual(["sideEffects is not set"]);
  expect(problemsOf({}, (file) => file !== "LICENSE")).toEqual(["LICENSE is missing"]);
});
