import { rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { checkMachine, thisMachine } from "./machine.mjs";
import { capture, ROOT } from "./process.mjs";
import { clearStamp, present, readStamp, wanted, writeStamp } from "./stamp.mjs";
import { pinnedPnpm } from "./workspace.mjs";

/** Why the repository could not be set up, in words for whoever ran the command. */
export class SetUpError extends Error {
  name = "SetUpError";
  code = "SET_UP_FAILED";
}

/**
 * Installs the packages and builds everything, as far as it is not done already; says on stderr what it does.
 *
 * @param options `fresh`: look at the machine's tools even when nothing seems to have changed.
 * @returns when `fresh`, a function that runs turbo with the arguments it is given: `{ code, output }`
 * @throws SetUpError
 */
export async function setUp({ fresh = false } = {}) {
  const started = performance.now();
  const stamp = readStamp(ROOT);
  const target = wanted(ROOT, outsideFacts());
  if (!fresh && isUpToDate(stamp, target)) return;

  const { problems, toolchain } = await checkMachine(thisMachine(capture));
  if (problems.length > 0) throw new SetUpError(problems.join("\n"));
  const path = await pathWithPnpm(pinnedPnpm(ROOT));
  const turbo = (args, options) => runTurbo(args, { path, toolchain, ...options });
  if (stamp.toolchain === toolchain && isUpToDate(stamp, target)) return turbo;

  clearStamp(ROOT);
  if (stamp.install !== target.install || stamp.installed !== present(ROOT).installed) await install(path);
  if (stamp.toolchain !== toolchain) forgetNativeBuilds();
  await build(turbo);
  writeStamp(ROOT, { ...target, ...present(ROOT), toolchain });
  say(`ready in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  return turbo;
}

/** One line on stderr: stdout is for answers. */
export function say(line) {
  console.error(`niwaki: ${line}`);
}

function isUpToDate(stamp, target) {
  if (stamp.install !== target.install || stamp.build !== target.build) return false;
  const { installed, built } = present(ROOT);
  return stamp.installed === installed && stamp.built === built;
}

function outsideFacts() {
  const { env, version, platform, arch } = process;
  return [version, platform, arch, env.CC ?? "", env.CXX ?? ""];
}

async function install(path) {
  const version = pinnedPnpm(ROOT);
  say(`installing packages with pnpm ${version}`);
  // CI=true: pnpm asks no questions, whoever runs this.
  const env = { ...process.env, PATH: path, CI: "true" };
  const { code, output } = await capture("pnpm", ["install", "--frozen-lockfile"], { env });
  if (code !== 0) throw new SetUpError(`${output}pnpm install failed (exit code ${code}): the reason is above`);
}

async function build(turbo) {
  say("building native code and packages (the first time this takes a few minutes)");
  const { code, output } = await turbo(["run", "build", "build:native", "--output-logs=errors-only"]);
  if (code !== 0) throw new SetUpError(`${output}the build failed (exit code ${code}): the reason is above`);
}

function runTurbo(args, { path, toolchain, stream = false }) {
  const env = {
    ...process.env,
    PATH: path,
    NIWAKI_TOOLCHAIN: toolchain,
    CMAKE_BUILD_PARALLEL_LEVEL: String(availableParallelism()),
    TURBO_TELEMETRY_DISABLED: "1",
    TURBO_NO_UPDATE_NOTIFIER: "1",
    DO_NOT_TRACK: "1",
  };
  const turbo = join(ROOT, "node_modules/turbo/bin/turbo");
  const command = [turbo, ...args, "--concurrency=2", "--cache=local:rw", "--no-color"];
  return capture(process.execPath, command, { env, stream });
}

/** A cmake build folder remembers its compiler, so another compiler needs new ones. */
function forgetNativeBuilds() {
  for (const folder of ["kernels/build", "packages/kernels-native/build"]) {
    rmSync(join(ROOT, folder), { recursive: true, force: true });
  }
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
