import type * as fs from "node:fs";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { cudaNeeds } from "./cuda-library.js";
import type { DeviceOptions } from "./device.js";

/** What a require of each of these modules gives; all others are not there. */
const modules = new Map<string, () => unknown>();
/** Files that are there, by the end of their path. */
const files = new Map<string, string>();
const contentOf = (path: unknown) => [...files].find(([end]) => String(path).endsWith(end))?.[1];

vi.mock("node:module", () => ({
  createRequire: () => (id: string) => {
    const load = modules.get(id);
    if (load) return load();
    throw Object.assign(new Error(`Cannot find module '${id}'\nRequire stack: …`), { code: "MODULE_NOT_FOUND" });
  },
}));

vi.mock("node:fs", async (importOriginal) => ({
  ...(await importOriginal<typeof fs>()),
  existsSync: (path: unknown) => contentOf(path) !== undefined,
  readFileSync: (path: unknown) => {
    const content = contentOf(path);
    if (content === undefined) throw new Error(`ENOENT: ${path}`);
    return content;
  },
}));

const local = "build-cuda/libniwaki-cuda.so";
const driver = "/sys/module/nvidia/version";
const packaged = "@niwaki/kernels-native-linux-x64-cuda";

const h200 = { name: "NVIDIA H200", major: 9, minor: 0, memory: 150e9, freeMemory: 149e9, usable: true };
const l4 = { name: "NVIDIA L4", major: 8, minor: 9, memory: 24e9, freeMemory: 23e9, usable: false };

const addon = {
  tiers: () => ["portable"],
  openDevice: vi.fn((threads: number, tier: string) => ({ handle: {}, threads: threads || 4, tier: tier || "best" })),
  cudaGpus: vi.fn((_library: string): object[] => []),
  openCudaDevice: vi.fn((_library: string, _gpu: number) => ({ handle: {}, threads: 132, tier: "cuda" })),
  cudaBounds: vi.fn((_library: string, _gpu: number) => ({ bytesPerSecond: 4e12, flopsPerSecond: 8e14 })),
};

function unsupported(message: string): Error {
  return Object.assign(new Error(message), { code: "unsupported" });
}

/** The package, loaded anew: it keeps its addon. */
async function load() {
  vi.resetModules();
  return await import("./index.js");
}

async function open(options: DeviceOptions) {
  return (await load()).Device.open(options);
}

beforeEach(() => {
  vi.stubEnv("NIWAKI_CUDA_LIBRARY", "");
  vi.stubEnv("NIWAKI_BACKEND", "");
  vi.stubGlobal("process", { ...process, env: process.env, platform: "linux", arch: "x64" });
  modules.set("../build/Release/niwaki.node", () => addon);
});

afterEach(() => {
  vi.unstubAllGlobals();
  vi.unstubAllEnvs();
  vi.clearAllMocks();
  addon.cudaGpus.mockReset();
  modules.clear();
  files.clear();
});

/** The package is there, and the driver shows these GPUs. */
function provide(...gpus: object[]): void {
  modules.set(packaged, () => "/package/libniwaki-cuda.so");
  addon.cudaGpus.mockReturnValue(gpus);
}

describe("gpus", () => {
  it("lists what the driver shows", async () => {
    files.set(driver, "580.95.05\n");
    provide(l4, h200);
    const { gpus } = await load();
    expect(gpus()).toEqual({
      library: "/package/libniwaki-cuda.so",
      driver: "580.95.05",
      gpus: [
        { index: 0, name: "NVIDIA L4", computeCapability: "8.9", memory: 24e9, freeMemory: 23e9, usable: false },
        { index: 1, name: "NVIDIA H200", computeCapability: "9.0", memory: 150e9, freeMemory: 149e9, usable: true },
      ],
    });
  });

  it("takes the library that the environment names, then a build of the checkout, then the package", async () => {
    provide(h200);
    const { gpus } = await load();
    expect(gpus().library).toBe("/package/libniwaki-cuda.so");
    files.set(local, "");
    expect(gpus().library).toMatch(/kernels-native\/build-cuda\/libniwaki-cuda\.so$/);
    vi.stubEnv("NIWAKI_CUDA_LIBRARY", "/mine/libniwaki-cuda.so");
    expect(gpus().library).toBe("/mine/libniwaki-cuda.so");
    expect(addon.cudaGpus).toHaveBeenLastCalledWith("/mine/libniwaki-cuda.so");
  });

  it("says what it tried and what to install where there is no package", async () => {
    const { gpus } = await load();
    expect(gpus()).toEqual({
      gpus: [],
      library: null,
      driver: null,
      reason: [
        "The CUDA kernels of @niwaki/kernels-native are not there. Tried:",
        "  build-cuda/libniwaki-cuda.so (a build of this checkout): not there",
        "  @niwaki/kernels-native-linux-x64-cuda: not there",
        "They come in a package of their own: npm install @niwaki/kernels-native-linux-x64-cuda",
        "In a checkout, nvcc builds them: pnpm -C packages/kernels-native build:cuda",
        cudaNeeds,
      ].join("\n"),
    });
    expect(addon.cudaGpus).not.toHaveBeenCalled();
    vi.stubGlobal("process", { ...process, platform: "darwin", arch: "arm64" });
    expect(gpus().reason).toContain("\n  no package has CUDA kernels for darwin-arm64\n");
  });

  it("gives the reason of a driver that is missing or too old", async () => {
    provide();
    addon.cudaGpus.mockImplementation(() => {
      throw unsupported("there is no NVIDIA driver");
    });
    const { gpus } = await load();
    expect(gpus()).toMatchObject({
      gpus: [],
      library: "/package/libniwaki-cuda.so",
      reason: `there is no NVIDIA driver\n${cudaNeeds}`,
    });
  });

  it("says why none of the GPUs can be used", async () => {
    provide(l4);
    const { gpus } = await load();
    const { reason, gpus: found } = gpus();
    expect(found).toHaveLength(1);
    expect(reason).toBe(`GPU 0 (NVIDIA L4, compute capability 8.9) cannot be used\n${cudaNeeds}`);
    addon.cudaGpus.mockReturnValue([]);
    expect(gpus().reason).toBe(`The driver shows no GPU.\n${cudaNeeds}`);
  });
});

describe("Device.open", () => {
  it("opens the CPU unless told otherwise, without a look for CUDA", async () => {
    provide(h200);
    const device = await open({});
    expect(device).toMatchObject({ backend: "cpu", threads: 4, tier: "best" });
    expect(device.name).not.toBe("");
    expect(addon.cudaGpus).not.toHaveBeenCalled();
  });

  it("opens a GPU: the first that is usable, or the one that is named", async () => {
    provide(l4, h200, { ...h200, name: "NVIDIA H100" });
    expect(await open({ backend: "cuda" })).toMatchObject({
      backend: "cuda",
      name: "NVIDIA H200",
      threads: 132,
      tier: "cuda",
    });
    expect(addon.openCudaDevice).toHaveBeenLastCalledWith("/package/libniwaki-cuda.so", 1);
    expect((await open({ backend: "cuda", gpu: 2 })).name).toBe("NVIDIA H100");
    expect((await open({ backend: "auto", gpu: 2 })).name).toBe("NVIDIA H100");
    expect((await open({ backend: "auto", threads: 3 })).name).toBe("NVIDIA H200");
    expect(addon.openDevice).not.toHaveBeenCalled();
  });

  it("opens the CPU with auto where there is no such GPU", async () => {
    expect(await open({ backend: "auto", threads: 3 })).toMatchObject({ backend: "cpu", threads: 3 });
    provide(l4);
    expect((await open({ backend: "auto" })).backend).toBe("cpu");
    provide(l4, h200);
    expect((await open({ backend: "auto", gpu: 0 })).backend).toBe("cpu");
    expect((await open({ backend: "auto", gpu: 7 })).backend).toBe("cpu");
  });

  it("refuses cuda with the reason", async () => {
    await expect(open({ backend: "cuda" })).rejects.toMatchObject({
      name: "KernelError",
      code: "unsupported",
      message: expect.stringMatching(/^The CUDA kernels .* are not there\..*npm install @niwaki/s),
    });
    provide(l4, h200);
    await expect(open({ backend: "cuda", gpu: 0 })).rejects.toMatchObject({
      code: "unsupported",
      message:
        "GPU 0 (NVIDIA L4, compute capability 8.9) cannot be used; usable: GPU 1 (NVIDIA H200, compute capability 9.0).",
    });
    await expect(open({ backend: "cuda", gpu: 5 })).rejects.toThrow(/^There is no GPU 5; usable: GPU 1 \(NVIDIA H200/);
    addon.openCudaDevice.mockImplementationOnce(() => {
      throw Object.assign(new Error("no memory"), { code: "out-of-memory" });
    });
    await expect(open({ backend: "cuda" })).rejects.toMatchObject({ name: "KernelError", code: "out-of-memory" });
  });

  it("takes the backend from NIWAKI_BACKEND where none is given", async () => {
    provide(h200);
    vi.stubEnv("NIWAKI_BACKEND", "cuda");
    expect((await open({})).backend).toBe("cuda");
    expect((await open({ backend: "cpu", threads: 1 })).backend).toBe("cpu");
    vi.stubEnv("NIWAKI_BACKEND", "auto");
    expect((await open({ threads: 1 })).backend).toBe("cuda");
    vi.stubEnv("NIWAKI_BACKEND", "tpu");
    await expect(open({})).rejects.toMatchObject({
      code: "invalid-argument",
      message: 'the environment variable NIWAKI_BACKEND is "tpu": it must be "cpu", "cuda" or "auto"',
    });
  });

  it.each([
    [{ backend: "gpu" }, "options.backend", /"cpu", "cuda" or "auto"/],
    [{ backend: null }, "options.backend", /"cpu", "cuda" or "auto"/],
    [{ backend: "cuda", threads: 2 }, "options.threads", /leave it out with the backend "cuda"/],
    [{ backend: "cuda", tier: "portable" }, "options.tier", /leave it out with the backend "cuda"/],
    [{ backend: "cuda", gpu: -1 }, "options.gpu", /integer from 0/],
    [{ backend: "auto", gpu: 0.5 }, "options.gpu", /integer from 0/],
    [{ gpu: 0 }, "options.gpu", /choose "cuda" or "auto"/],
  ])("refuses %j", async (options, argument, message) => {
    provide(h200);
    await expect(open(options as DeviceOptions)).rejects.toMatchObject({
      code: "invalid-argument",
      argument,
      message: expect.stringMatching(message),
    });
  });

  it("refuses training on a GPU", async () => {
    provide(h200);
    const device = await open({ backend: "cuda" });
    const limits = { maxRows: 1, maxOutputs: 1, maxSequence: 1, vocabulary: 1, rope: { headDim: 16, base: 1e4 } };
    expect(() => device.encodeTraining(limits, () => null!)).toThrow(
      expect.objectContaining({ code: "unsupported", message: expect.stringMatching(/CPU only.*backend "cpu"/) }),
    );
  });
});

describe("measureGpu", () => {
  it("measures a usable GPU", async () => {
    provide(l4, h200);
    const { measureGpu } = await load();
    expect(measureGpu()).toEqual({ bytesPerSecond: 4e12, flopsPerSecond: 8e14 });
    expect(addon.cudaBounds).toHaveBeenLastCalledWith("/package/libniwaki-cuda.so", 1);
    expect(() => measureGpu(0)).toThrow(expect.objectContaining({ code: "unsupported" }));
    expect(() => measureGpu(-1)).toThrow(expect.objectContaining({ code: "invalid-argument" }));
  });
});
