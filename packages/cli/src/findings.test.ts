import { describe, expect, it } from "vitest";
import { describeFindings, type Findings } from "./findings.js";

const found: Findings = {
  node: "v20.20.0",
  platform: "linux-x64",
  cpu: { name: "AMD EPYC", cores: 2, kernels: ["avx2", "portable"] },
  environment: {},
};

describe("describeFindings", () => {
  it("shows the GPUs, usable or not", () => {
    const gpu = { name: "NVIDIA H200", memory: 150.75e9, freeMemory: 150e9 };
    const cuda = {
      library: "/package/libniwaki-cuda.so",
      driver: "580.95.05",
      gpus: [
        { ...gpu, index: 0, computeCapability: "9.0", usable: true },
        { ...gpu, index: 1, name: "NVIDIA L4", computeCapability: "8.9", usable: false },
      ],
    };
    expect(describeFindings({ ...found, cuda, environment: { NIWAKI_BACKEND: "auto" } })).toBe(
      [
        "Node.js v20.20.0, linux-x64",
        "",
        "CPU",
        "  processor  AMD EPYC, 2 cores",
        "  kernels    avx2, portable",
        "  usable     yes",
        "",
        "CUDA",
        "  kernels    /package/libniwaki-cuda.so",
        "  driver     580.95.05",
        "  GPU 0      NVIDIA H200, 150.75 GB (150.00 GB free), compute capability 9.0: usable",
        "  GPU 1      NVIDIA L4, 150.75 GB (150.00 GB free), compute capability 8.9: not usable",
        "  usable     yes, with --backend cuda or auto",
        "",
        "environment",
        "  NIWAKI_BACKEND=auto",
      ].join("\n"),
    );
  });

  it("says why there is no GPU to use", () => {
    const cuda = { library: null, driver: null, gpus: [], reason: "The kernels are not there. Tried:\n  a package" };
    expect(
      describeFindings({ ...found, cuda })
        .split("\n")
        .slice(7),
    ).toEqual([
      "CUDA",
      "  kernels    none",
      "  driver     none that Linux shows",
      "  usable     no",
      "    The kernels are not there. Tried:",
      "      a package",
    ]);
  });

  it("says why no kernels could be loaded", () => {
    const text = describeFindings({ ...found, cpu: { ...found.cpu, kernels: [] }, problem: "There is no addon." });
    expect(text).toMatch(/\n {2}usable {5}no\n {4}There is no addon\.$/);
  });
});
