import { describe, expect, it } from "vitest";
import { checkMachine, isSupportedNode } from "./machine.mjs";

const GCC = "g++ (Debian 12.2.0) 12.2.0";

/** A machine with what is given: the answer of each command's --version, and the commands that know C++20. */
function machine({ node = "v20.19.0", platform = "linux", env = {}, commands = {}, cxx20 = ["c++"], programs = [] }) {
  return {
    nodeVersion: node,
    platform,
    arch: "x64",
    env,
    has: (program) => programs.includes(program),
    capture: async (command, args) => {
      if (!(command in commands)) return { code: 127, output: `spawn ${command} ENOENT` };
      if (args.includes("-std=c++20")) return { code: cxx20.includes(command) ? 0 : 1, output: "" };
      return { code: 0, output: `${commands[command]}\nmore\n` };
    },
  };
}

const COMPLETE = { commands: { "c++": GCC, cmake: "cmake version 3.25.1" }, programs: ["apt-get", "make"] };

it("finds nothing missing on a complete machine, and describes its tools", async () => {
  expect(await checkMachine(machine(COMPLETE))).toEqual({
    problems: [],
    toolchain: "node v20.19.0 linux-x64; c++: g++ (Debian 12.2.0) 12.2.0; cmake version 3.25.1",
  });
});

it("says each thing that is missing in one line with the command that installs it", async () => {
  const { problems } = await checkMachine(machine({ node: "v18.20.4", programs: ["apt-get"] }));
  expect(problems).toEqual([
    "Node.js v18.20.4 cannot run Niwaki (20.19+ or 22.12+ can): curl -fsSL https://deb.nodesource.com/setup_22.x | sudo -E bash - && sudo apt-get install -y nodejs",
    "cmake needs make or ninja, and neither is on PATH: sudo apt-get install -y make",
    "no C++ compiler (c++, g++ or clang++) is on PATH: sudo apt-get install -y g++",
    "cmake is not on PATH: sudo apt-get install -y cmake",
  ]);
});

it("names the commands of macOS", async () => {
  const { problems } = await checkMachine(machine({ platform: "darwin", programs: ["brew"] }));
  expect(problems).toEqual([
    "cmake needs make or ninja, and neither is on PATH: xcode-select --install",
    "no C++ compiler (c++, g++ or clang++) is on PATH: xcode-select --install",
    "cmake is not on PATH: brew install cmake",
  ]);
});

it("refuses a compiler that does not know C++20 and a cmake that is too old", async () => {
  const commands = { "c++": "g++ 9.4.0", cmake: "cmake version 3.18.4" };
  const { problems } = await checkMachine(machine({ ...COMPLETE, commands, cxx20: [] }));
  expect(problems).toEqual([
    "c++ (g++ 9.4.0) cannot compile C++20 (GCC 10+ and Clang 14+ can): sudo apt-get install -y g++",
    "cmake version 3.18.4 is too old (3.20 is needed): sudo apt-get install -y cmake",
  ]);
});

it("takes the first compiler there is", async () => {
  const commands = { "clang++": "clang version 16", cmake: "cmake version 4.0.0" };
  const { problems, toolchain } = await checkMachine(machine({ ...COMPLETE, commands, cxx20: ["clang++"] }));
  expect(problems).toEqual([]);
  expect(toolchain).toContain("clang++: clang version 16");
});

it("asks only the compiler that CXX names, which may carry arguments", async () => {
  const commands = { ...COMPLETE.commands, ccache: "g++ 13.1" };
  const found = await checkMachine(machine({ ...COMPLETE, commands, env: { CXX: "ccache g++" }, cxx20: ["ccache"] }));
  expect(found.problems).toEqual([]);
  expect(found.toolchain).toContain("ccache g++: g++ 13.1");
  const missing = await checkMachine(machine({ ...COMPLETE, env: { CXX: "icpx" } }));
  expect(missing.problems).toEqual(['CXX is "icpx", which cannot be run: sudo apt-get install -y g++']);
});

describe("isSupportedNode", () => {
  it.each(["v20.19.0", "v20.20.2", "v22.12.0", "v23.0.0", "v24.1.0"])("takes %s", (version) => {
    expect(isSupportedNode(version)).toBe(true);
  });
  it.each(["v16.20.2", "v18.20.4", "v20.18.3", "v21.7.3", "v22.11.0"])("refuses %s", (version) => {
    expect(isSupportedNode(version)).toBe(false);
  });
});
