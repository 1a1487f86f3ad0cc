import { ROOT } from "./process.mjs";
import { clearStamp, present, readStamp, wanted, writeStamp } from "./stamp.mjs";
import { findTools } from "./tools.mjs";

/**
 * Installs the packages and builds everything, as far as that is not done already; says on stderr what it does.
 *
 * @param options `fresh`: look at the machine's tools even when nothing changed; `root`, `facts`, `find` and `say` are
 *   the repository, what outside it matters, the way to its tools and the way to say things.
 * @returns the tools, or undefined when there was nothing to do and `fresh` is not set
 * @throws SetUpError
 */
export async function setUp({
  fresh = false,
  root = ROOT,
  facts = outside(),
  find = findTools,
  say = sayOnStderr,
} = {}) {
  const started = performance.now();
  const stamp = readStamp(root);
  const target = wanted(root, facts);
  if (!fresh && isUpToDate(root, stamp, target)) return undefined;

  const tools = await find();
  const sameTools = stamp.toolchain === tools.toolchain;
  if (sameTools && isUpToDate(root, stamp, target)) return tools;

  clearStamp(root);
  if (stamp.install !== target.install || stamp.installed !== present(root).installed) {
    say(`installing packages with pnpm ${tools.pnpm}`);
    await tools.install();
  }
  if (!sameTools) tools.forgetNativeBuilds();
  say("building native code and packages (the first time takes a few minutes)");
  await tools.build();
  // The target is from before the work: whatever was edited meanwhile is seen as a change by the next run.
  writeStamp(root, { ...target, ...present(root), toolchain: tools.toolchain });
  say(`ready in ${((performance.now() - started) / 1000).toFixed(1)} s`);
  return tools;
}

function isUpToDate(root, stamp, target) {
  if (stamp.install !== target.install || stamp.build !== target.build) return false;
  const { installed, built } = present(root);
  return stamp.installed === installed && stamp.built === built;
}

function outside() {
  const { env, version, platform, arch } = process;
  return [version, platform, arch, env.CC ?? "", env.CXX ?? ""];
}

/** On stderr, because stdout is for answers. */
function sayOnStderr(line) {
  console.error(`niwaki: ${line}`);
}
