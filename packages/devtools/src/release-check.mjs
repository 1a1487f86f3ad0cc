import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { capture, ROOT } from "./process.mjs";
import { workspacePackages } from "./workspace.mjs";

/** Binaries that no set-up builds: their packages are packed where somebody has. */
const BUILT_ON_PURPOSE = {
  "@niwaki/kernels-native-linux-x64-cuda": "packages/kernels-native/build-cuda/libniwaki-cuda.so",
};

const PROGRAM = `
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { demoModelPath } from "@niwaki/demo-model";
import { Qwen3Model } from "@niwaki/qwen3-model";

const require = createRequire(import.meta.url);
for (const name of JSON.parse(process.argv[2])) assert.ok(require(name), name);

const model = await Qwen3Model.load(demoModelPath);
let answer = "";
const messages = [{ role: "user", content: "Where does a bear live?" }];
for await (const piece of model.generate(messages, { thinking: false })) answer += piece.text;
await model.dispose();
assert.equal(answer, "A bear lives in the forest.");

const flags = ["run", "-p", messages[0].content, "--no-think"];
assert.equal(execFileSync("node_modules/.bin/niwaki", flags, { encoding: "utf8", stdio: "pipe" }), answer + "\\n");
`;

/**
 * Packs every public package as it would be published, installs the archives in a folder of their own, and runs a
 * program and the command there: what npm users get works without this repository.
 *
 * @param env the environment in which the pinned pnpm runs
 * @returns `{ code, output }`
 */
export async function checkRelease(env) {
  const folder = mkdtempSync(join(tmpdir(), "niwaki-release-"));
  try {
    const archives = join(folder, "archives");
    const project = join(folder, "project");
    mkdirSync(archives);
    mkdirSync(project);
    const published = workspacePackages(ROOT).filter(({ manifest }) => {
      const binary = BUILT_ON_PURPOSE[manifest.name];
      return !manifest.private && (binary === undefined || existsSync(join(ROOT, binary)));
    });
    const specifiers = {};
    for (const { folder: source, manifest } of published) {
      const before = new Set(readdirSync(archives));
      const packed = await capture("pnpm", ["pack", "--pack-destination", archives], { cwd: join(ROOT, source), env });
      if (packed.code !== 0) return packed;
      const archive = readdirSync(archives).find((name) => !before.has(name));
      specifiers[manifest.name] = `file:${join(archives, archive)}`;
    }
    const overrides = Object.entries(specifiers).map(([name, file]) => `  "${name}": "${file}"\n`);
    writeFileSync(join(project, "pnpm-workspace.yaml"), `packages: []\noverrides:\n${overrides.join("")}`);
    writeFileSync(join(project, "package.json"), JSON.stringify({ type: "module", dependencies: specifiers }));
    writeFileSync(join(project, "program.mjs"), PROGRAM);
    const installed = await capture("pnpm", ["install", "--prefer-offline"], { cwd: project, env });
    if (installed.code !== 0) return installed;
    const names = published.filter(({ manifest }) => !manifest.os).map(({ manifest }) => manifest.name);
    return await capture(process.execPath, ["program.mjs", JSON.stringify(names)], { cwd: project });
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
