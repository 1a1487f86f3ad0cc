// The arrows of the layers, each package with what it may import of the others. Tests may import the private
// @niwaki/testing and what their package.json names; nothing else gets past its row.
const MAY_IMPORT = {
  "kernels-native": ["kernels-native-linux-x64-gnu", "kernels-native-linux-x64-cuda"],
  gguf: [],
  tokenizer: [],
  "paged-kv": [],
  "prefill-scheduler": [],
  pipeline: [],
  lora: ["gguf"],
  "demo-model": [],
  "qwen3-model": ["kernels-native", "gguf", "tokenizer", "paged-kv", "prefill-scheduler", "pipeline", "lora"],
};

/** Packages of the top row: anything below, and never each other but for the demo model. */
const APPS = ["cli", "server"];
const ALONE = ["paged-kv", "prefill-scheduler"];

/** Tests, and the files that only they use: test-*.ts. */
const TEST = "\\.test\\.(ts|mjs)$|/test-[^/]*\\.ts$";

const arrows = Object.entries(MAY_IMPORT).map(([name, allowed]) => ({
  name: `${name}-imports-only-what-lies-below`,
  comment: `packages/${name} may import ${allowed.length > 0 ? allowed.join(", ") : "no other package of this repository"}.`,
  severity: "error",
  from: { path: `^packages/${name}/`, pathNot: TEST },
  to: { path: "^(packages|examples)/", pathNot: `^packages/(${[name, ...allowed].join("|")})/` },
}));

module.exports = {
  forbidden: [
    ...arrows,
    {
      name: "apps-stay-apart",
      comment: "The CLI and the server do not import each other, nor benchmarks, examples and test helpers.",
      severity: "error",
      from: { path: `^packages/(${APPS.join("|")})/`, pathNot: TEST },
      to: { path: "^(packages/(cli|server|bench|testing|devtools)|examples)/", pathNot: "^packages/$1/" },
    },
    {
      name: "nothing-imports-an-app",
      severity: "error",
      from: { path: "^packages/(?!cli/|server/|bench/)" },
      to: { path: "^(packages/(cli|server|bench|devtools)|examples)/", pathNot: "^packages/devtools/" },
    },
    {
      name: "testing-is-for-tests",
      comment: "@niwaki/testing is private: only tests, benchmarks and itself import it.",
      severity: "error",
      from: { path: "^(packages|examples)/", pathNot: [TEST, "^packages/(testing|bench)/"] },
      to: { path: "^packages/testing/" },
    },
    {
      name: "testing-knows-files-only",
      severity: "error",
      from: { path: "^packages/testing/", pathNot: TEST },
      to: { path: "^packages/", pathNot: "^packages/(testing|gguf)/" },
    },
    {
      name: "pure-packages-import-nothing",
      comment: "paged-kv and prefill-scheduler run in a browser: no dependency, no module of Node.js.",
      severity: "error",
      from: { path: `^packages/(${ALONE.join("|")})/src/`, pathNot: TEST },
      to: { pathNot: "^packages/$1/src/" },
    },
    {
      name: "no-relative-path-into-a-package",
      comment: "A package is imported by its name, as npm users import it.",
      severity: "error",
      from: { path: "^((?:packages|examples)/[^/]+)/" },
      to: { path: "^(packages|examples)/", pathNot: "^$1/", dependencyTypes: ["local"] },
    },
    {
      name: "no-circular",
      comment: "Cycles of types alone are gone when the code runs.",
      severity: "error",
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ["type-only"] } },
    },
    {
      name: "no-unresolvable",
      comment: "The packages with binaries are installed from npm, each on its own platform.",
      severity: "error",
      from: {},
      to: { couldNotResolve: true, pathNot: "^@niwaki/kernels-native-" },
    },
    {
      name: "no-dev-dependency-in-source",
      comment: "What the published code imports must be among its dependencies.",
      severity: "error",
      from: { path: "^packages/[^/]+/src/", pathNot: [TEST, "^packages/devtools/"] },
      to: { dependencyTypes: ["npm-dev", "npm-no-pkg", "npm-unknown"], dependencyTypesNot: ["type-only"] },
    },
  ],
  options: {
    doNotFollow: { path: ["node_modules", "/dist/"] },
    exclude: { path: ["/fixtures/", "/coverage/", "/build(-cuda)?/"] },
    tsPreCompilationDeps: true,
    combinedDependencies: false,
    enhancedResolveOptions: { exportsFields: ["exports"], conditionNames: ["import", "node", "default"] },
  },
};
