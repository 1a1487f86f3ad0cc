import { describe, expect, it } from "vitest";
import { findAarch64Tools, provideAarch64Tools } from "./aarch64-tools.mjs";

const GCC = "aarch64-linux-gnu-g++ (Debian 12.2.0-14) 12.2.0";
const QEMU = "qemu-aarch64 version 7.2.22";
const COMPLETE = ["aarch64-linux-gnu-g++", "qemu-aarch64"];

/** A machine with programs; apt-get adds `installs`, or fails at the subcommand `failing`. */
function machine({ arch = "x64", programs = [], installs = [], failing, isRoot = false }) {
  const there = new Set(programs);
  const calls = [];
  const capture = async (command, args, options) => {
    calls.push([command, ...args].join(" "));
    if (command === "apt-get") {
      expect(options.env.DEBIAN_FRONTEND).toBe("noninteractive");
      if (args.includes(failing)) return { code: 100, output: "W: so so\nE: no network\n" };
      if (args.includes("--no-download")) for (const name of installs) there.add(name);
      return { code: 0, output: "" };
    }
    return { code: 0, output: `${command.startsWith("qemu") ? QEMU : GCC}\nmore\n` };
  };
  return { arch, env: {}, isRoot, capture, has: (program) => there.has(program), calls };
}

describe("findAarch64Tools", () => {
  it("finds the compiler and either emulator, with their versions", async () => {
    const found = { compiler: "aarch64-linux-gnu-g++", emulator: "qemu-aarch64", versions: [GCC, QEMU] };
    expect(await findAarch64Tools(machine({ programs: COMPLETE }))).toEqual(found);
    const emulator = "qemu-aarch64-static";
    expect(await findAarch64Tools(machine({ programs: [COMPLETE[0], emulator] }))).toEqual({ ...found, emulator });
  });

  it("names what is missing and how to install it", async () => {
    const install = "not on PATH: sudo apt-get install -y g++-aarch64-linux-gnu qemu-user";
    expect(await findAarch64Tools(machine({}))).toEqual({
      missing: `aarch64-linux-gnu-g++ and qemu-aarch64 ${install}`,
    });
    expect(await findAarch64Tools(machine({ programs: ["qemu-aarch64"] }))).toEqual({
      missing: `aarch64-linux-gnu-g++ ${install}`,
    });
  });

  it("needs nothing on the processor itself", async () => {
    expect(await findAarch64Tools(machine({ arch: "arm64" }))).toEqual({ native: true });
  });
});

describe("provideAarch64Tools", () => {
  const say = () => {};

  it("installs what is missing as root where there is apt-get", async () => {
    const debian = machine({ programs: ["apt-get"], installs: COMPLETE, isRoot: true });
    const said = [];
    expect(await provideAarch64Tools(debian, (line) => said.push(line))).toMatchObject({ emulator: "qemu-aarch64" });
    expect(said).toEqual(["installing g++-aarch64-linux-gnu and qemu-user, to test the AArch64 kernels"]);
    expect(debian.calls.filter((call) => call.startsWith("apt-get")).map((call) => call.split(" -o ").at(-1))).toEqual([
      "Acquire::https::Timeout=20 update",
      "DPkg::Lock::Timeout=30 install -y --no-install-recommends --download-only g++-aarch64-linux-gnu qemu-user",
      "DPkg::Lock::Timeout=30 install -y --no-install-recommends --no-download g++-aarch64-linux-gnu qemu-user",
    ]);
  });

  it("installs nothing where nothing is missing, without root or without apt-get", async () => {
    for (const options of [
      { programs: ["apt-get", ...COMPLETE], isRoot: true },
      { programs: ["apt-get"] },
      { programs: ["dnf"], isRoot: true },
    ]) {
      const one = machine(options);
      expect(await provideAarch64Tools(one, say)).toEqual(await findAarch64Tools(machine(options)));
      expect(one.calls.filter((call) => call.startsWith("apt-get"))).toEqual([]);
    }
  });

  it("says why the installation failed; an update alone that fails is no reason", async () => {
    const offline = { programs: ["apt-get"], installs: COMPLETE, isRoot: true };
    expect(await provideAarch64Tools(machine({ ...offline, failing: "--download-only" }), say)).toEqual({
      missing: "apt-get install g++-aarch64-linux-gnu qemu-user failed: E: no network",
    });
    expect(await provideAarch64Tools(machine({ ...offline, failing: "update" }), say)).toMatchObject({
      compiler: "aarch64-linux-gnu-g++",
    });
  });
});
