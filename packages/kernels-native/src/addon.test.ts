import { afterEach, describe, expect, it, vi } from "vitest";

/** What a require of each of these modules does; all others are not there. */
const modules = new Map<string, () => unknown>();

vi.mock("node:module", () => ({
  createRequire: () => (id: string) => {
    const load = modules.get(id);
    if (load) return load();
    throw Object.assign(new Error(`Cannot find module '${id}'\nRequire stack: …`), { code: "MODULE_NOT_FOUND" });
  },
}));

const local = "../build/Release/niwaki.node";
const packaged = "@niwaki/kernels-native-linux-x64-gnu";

async function tiers(platform: NodeJS.Platform, arch: NodeJS.Architecture): Promise<string[]> {
  vi.stubGlobal("process", { ...process, platform, arch });
  vi.resetModules();
  const { cpuTiers } = await import("./device.js");
  return cpuTiers();
}

afterEach(() => {
  vi.unstubAllGlobals();
  modules.clear();
});

describe("the loader", () => {
  it("takes the build of the checkout first, then the package of the platform", async () => {
    modules.set(packaged, () => ({ tiers: () => ["packaged"] }));
    expect(await tiers("linux", "x64")).toEqual(["packaged"]);
    modules.set(local, () => ({ tiers: () => ["local"] }));
    expect(await tiers("linux", "x64")).toEqual(["local"]);
    expect(await tiers("darwin", "arm64")).toEqual(["local"]);
  });

  it("lists what it tried, why that failed, and what to do", async () => {
    modules.set(packaged, () => {
      throw Object.assign(new Error("libc.so.6: version `GLIBC_2.34' not found"), { code: "ERR_DLOPEN_FAILED" });
    });
    await expect(tiers("linux", "x64")).rejects.toMatchObject({
      name: "KernelError",
      code: "addon-not-found",
      message: [
        "The native code of @niwaki/kernels-native could not be loaded on linux-x64. Tried:",
        "  build/Release/niwaki.node (a build of this checkout): not there",
        "  @niwaki/kernels-native-linux-x64-gnu: libc.so.6: version `GLIBC_2.34' not found",
        "On Linux x64 with glibc, install without --omit=optional (or --no-optional). On another system, build it from a " +
          "checkout of the repository with a C++20 compiler and cmake: pnpm -C packages/kernels-native build:native",
      ].join("\n"),
    });
    await expect(tiers("sunos", "x64")).rejects.toThrow(/\n {2}no package has a binary for sunos-x64\n/);
  });
});
