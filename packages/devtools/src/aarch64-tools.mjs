const PACKAGES = ["g++-aarch64-linux-gnu", "qemu-user"];
const COMPILER = "aarch64-linux-gnu-g++";
const EMULATORS = ["qemu-aarch64", "qemu-aarch64-static"];

const MINUTE = 60_000;
const NETWORK = ["-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20"];
const LOCK = ["-o", "DPkg::Lock::Timeout=30"];
/** Only what may be broken off at any moment has a limit of time: fetching, not unpacking. */
const INSTALLATION = [
  { args: [...NETWORK, "update"], timeout: 2 * MINUTE },
  { args: [...NETWORK, ...LOCK, "install", "-y", "--no-install-recommends", "--download-only"], timeout: 4 * MINUTE },
  { args: [...LOCK, "install", "-y", "--no-install-recommends", "--no-download"] },
];

/**
 * What runs programs for AArch64 on this machine, to test the kernels of that processor on another one:
 * `{ compiler, emulator, versions }`; `{ native: true }` on AArch64 itself, whose kernels the other tests run; or
 * `{ missing }`, a line that says what is not there and how it is installed.
 *
 * @param machine as in machine.mjs
 */
export async function findAarch64Tools({ arch, capture, has }) {
  if (arch === "arm64") return { native: true };
  const emulator = EMULATORS.find(has);
  const absent = [...(has(COMPILER) ? [] : [COMPILER]), ...(emulator ? [] : [EMULATORS[0]])];
  if (absent.length > 0) {
    return { missing: `${absent.join(" and ")} not on PATH: sudo apt-get install -y ${PACKAGES.join(" ")}` };
  }
  const versions = [];
  for (const program of [COMPILER, emulator]) {
    const { code, output } = await capture(program, ["--version"]);
    if (code !== 0) return { missing: `${program} cannot be run: ${lastLine(output)}` };
    versions.push(output.split("\n")[0].trim());
  }
  return { compiler: COMPILER, emulator, versions };
}

/** The same, and where they are missing but apt-get may install them, they are installed; `say` is told before. */
export async function provideAarch64Tools(machine, say) {
  const found = await findAarch64Tools(machine);
  if (!found.missing || !machine.isRoot || !machine.has("apt-get")) return found;
  say(`installing ${PACKAGES.join(" and ")}, to test the AArch64 kernels`);
  const env = { ...machine.env, DEBIAN_FRONTEND: "noninteractive" };
  for (const { args, timeout } of INSTALLATION) {
    const packages = args.includes("install") ? PACKAGES : [];
    const { code, output } = await machine.capture("apt-get", ["-qq", ...args, ...packages], { env, timeout });
    // What apt-get knows already may be enough without an update.
    if (code !== 0 && packages.length > 0) {
      return { missing: `apt-get install ${PACKAGES.join(" ")} failed: ${lastLine(output)}` };
    }
  }
  return findAarch64Tools(machine);
}

function lastLine(output) {
  return output.trim().split("\n").at(-1);
}
