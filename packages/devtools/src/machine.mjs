import { existsSync } from "node:fs";
import { delimiter, join } from "node:path";

const OLDEST_CMAKE = [3, 20];

/** Enough of C++20 to tell a compiler that has it from one that only knows the flag. */
const CXX20_PROBE = `#include <bit>
#include <concepts>
#include <span>
template <std::integral T> int f(std::span<T> s) { return std::popcount(static_cast<unsigned>(s[0])); }
int g(int* p) { return f(std::span<int>(p, 1)); }
`;

/** How each kind of machine installs what may be missing; the first whose program is on PATH is used. */
const INSTALLERS = [
  {
    program: "brew",
    cxx: "xcode-select --install",
    make: "xcode-select --install",
    cmake: "brew install cmake",
    node: "brew install node@22",
  },
  {
    program: "apt-get",
    cxx: "sudo apt-get install -y g++",
    make: "sudo apt-get install -y make",
    cmake: "sudo apt-get install -y cmake",
    node: "curl -fsSL https://deb.nodesource.com/setup_22.x | sudo -E bash - && sudo apt-get install -y nodejs",
  },
  {
    program: "dnf",
    cxx: "sudo dnf install -y gcc-c++",
    make: "sudo dnf install -y make",
    cmake: "sudo dnf install -y cmake",
    node: "sudo dnf install -y nodejs22",
  },
  {
    program: "pacman",
    cxx: "sudo pacman -S --noconfirm gcc",
    make: "sudo pacman -S --noconfirm make",
    cmake: "sudo pacman -S --noconfirm cmake",
    node: "sudo pacman -S --noconfirm nodejs-lts-jod npm",
  },
  {
    program: "apk",
    cxx: "sudo apk add g++",
    make: "sudo apk add make",
    cmake: "sudo apk add cmake",
    node: "sudo apk add nodejs npm",
  },
];

const MACOS = { ...INSTALLERS[0] };

/** True for the Node.js versions that `engines` names: 20.19 or later in 20, 22.12 or later from there on. */
export function isSupportedNode(version) {
  const [major, minor] = version.replace(/^v/, "").split(".").map(Number);
  return (major === 20 && minor >= 19) || (major === 22 && minor >= 12) || major > 22;
}

/**
 * What this machine lacks to build Niwaki, each as one line with the command that installs it, and a description of
 * the tools found, which changes whenever a native build made with them should be made again.
 *
 * @param machine `{ nodeVersion, platform, arch, env, capture, has }`: the facts and the two ways to ask for more.
 * @returns `{ problems: string[], toolchain: string }`
 */
export async function checkMachine(machine) {
  const install = installer(machine);
  const problems = [];
  if (!isSupportedNode(machine.nodeVersion)) {
    problems.push(`Node.js ${machine.nodeVersion} cannot run Niwaki (20.19+ or 22.12+ can): ${install.node}`);
  }
  const cxx = await checkCompiler(machine, install);
  const cmake = await checkCmake(machine, install);
  if (!machine.has("make") && !machine.has("ninja")) {
    problems.push(`cmake needs make or ninja, and neither is on PATH: ${install.make}`);
  }
  for (const tool of [cxx, cmake]) if (tool.problem) problems.push(tool.problem);
  const toolchain = [
    `node ${machine.nodeVersion} ${machine.platform}-${machine.arch}`,
    `${cxx.command}: ${cxx.version}`,
    cmake.version,
  ].join("; ");
  return { problems, toolchain };
}

/** The machine this process runs on, as `checkMachine` wants it. */
export function thisMachine(capture) {
  const { env, platform, arch, version } = process;
  const isRoot = process.getuid?.() === 0;
  return { nodeVersion: version, platform, arch, env, isRoot, capture, has: (program) => isOnPath(program, env) };
}

async function checkCompiler({ env, capture }, install) {
  // CXX may carry arguments ("ccache g++"), as cmake allows it to.
  const candidates = env.CXX ? [env.CXX] : ["c++", "g++", "clang++"];
  for (const command of candidates) {
    const [program, ...args] = command.split(/\s+/);
    const { code, output } = await capture(program, [...args, "--version"]);
    if (code !== 0) continue;
    const version = output.split("\n")[0].trim();
    const probe = await capture(program, [...args, "-std=c++20", "-fsyntax-only", "-x", "c++", "-"], {
      input: CXX20_PROBE,
    });
    const problem =
      probe.code === 0
        ? undefined
        : `${command} (${version}) cannot compile C++20 (GCC 10+ and Clang 14+ can): ${install.cxx}`;
    return { command, version, problem };
  }
  const tried = env.CXX
    ? `CXX is "${env.CXX}", which cannot be run`
    : "no C++ compiler (c++, g++ or clang++) is on PATH";
  return { command: "none", version: "none", problem: `${tried}: ${install.cxx}` };
}

async function checkCmake({ capture }, install) {
  const { code, output } = await capture("cmake", ["--version"]);
  const found = /cmake version (\d+)\.(\d+)\S*/.exec(output);
  if (code !== 0 || !found) return { version: "none", problem: `cmake is not on PATH: ${install.cmake}` };
  const [major, minor] = [Number(found[1]), Number(found[2])];
  const old = major < OLDEST_CMAKE[0] || (major === OLDEST_CMAKE[0] && minor < OLDEST_CMAKE[1]);
  const problem = old ? `${found[0]} is too old (${OLDEST_CMAKE.join(".")} is needed): ${install.cmake}` : undefined;
  return { version: found[0], problem };
}

function installer({ platform, has }) {
  if (platform === "darwin") return MACOS;
  return INSTALLERS.find(({ program }) => has(program)) ?? INSTALLERS[1];
}

function isOnPath(program, env) {
  return (env.PATH ?? "").split(delimiter).some((folder) => folder !== "" && existsSync(join(folder, program)));
}
