import { rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { checkMachine, thisMachine } from "./machine.mjs";
import { capture, ROOT } from "./process.mjs";
import { SetUpError } from "./set-up-error.mjs";
import { pinnedPnpm } from "./workspace.mjs";

/**
 * The tools of this machine that a set-up uses: `toolchain` (a description that changes when native code should be
 * built again), `pnpmEnvironment` (in which the pinned pnpm runs), `install()`, `build()`, `forgetNativeBuilds()` and `turbo(args, options)`.
 *
 * @throws SetUpError when the machine lacks one
 */
export async function findTools() {
  const { problems, toolchain } = await checkMachine(thisMachine(capture));
  if (problems.length > 0) throw new SetUpError(problems.join("\n"));
  const version = pinnedPnpm(ROOT);
  const path = await pathWithPnpm(version);

  const turbo = (args, { stream = false, environment = {} } = {}) => {
    const env = {
      ...process.env,
      ...environment,
      PATH: path,
      NIWAKI_TOOLCHAIN: toolchain,
      CMAKE_BUILD_PARALLEL_LEVEL: String(availableParallelism()),
      TURBO_TELEMETRY_DISABLED: "1",
      TURBO_NO_UPDATE_NOTIFIER: "1",
      DO_NOT_TRACK: "1",
    };
    const program = join(ROOT, "node_modules/turbo/bin/turbo");
    const always = ["--concurrency=2", "--cache=local:rw", "--no-color"];
    return capture(process.execPath, [program, ...args, ...always], { env, stream });
  };

  // CI=true: pnpm asks no questions, whoever runs this.
  const pnpmEnvironment = { ...process.env, PATH: path, CI: "true" };
  const install = async () => {
    check("pnpm install", await capture("pnpm", ["install", "--frozen-lockfile"], { env: pnpmEnvironment }));
  };

  const build = async () => {
    check("the build", await turbo(["run", "build", "build:native", "--output-logs=errors-only"]));
  };

  return { toolchain, pnpm: version, pnpmEnvironment, install, build, forgetNativeBuilds, turbo };
}

/** A cmake build folder remembers its compiler, so another compiler needs new ones. */
function forgetNativeBuilds() {
  for (const folder of ["kernels/build", "packages/kernels-native/build"]) {
    rmSync(join(ROOT, folder), { recursive: true, force: true });
  }
}

function check(what, { code, output }) {
  if (code !== 0) throw new SetUpError(`${output}${what} failed (exit code ${code}): the reason is above`);
}

/** A PATH on which `pnpm` is exactly `version`: this process's own, or with the one that npx fetches put before it. */
async function pathWithPnpm(version) {
  const found = await capture("pnpm", ["--version"]);
  if (found.code === 0 && found.output.trim() === version) return process.env.PATH;
  const printPath = 'process.stdout.write("\\nPATH=" + process.env.PATH + "\\n")';
  const npx = await capture("npx", ["--yes", `--package=pnpm@${version}`, "--", process.execPath, "-e", printPath]);
  const path = /^PATH=(.*)$/m.exec(npx.output)?.[1];
  if (npx.code !== 0 || !path) {
    throw new SetUpError(`${npx.output}pnpm ${version} could not be fetched by npx: npm install -g pnpm@${version}`);
  }
  return path;
}
