import { demoModelPath } from "@niwaki/demo-model";
import { afterEach, describe, expect, it, vi } from "vitest";
import { Qwen3Model } from "./model.js";
import { LoraTrainer } from "./training/lora-trainer.js";

const nowhere = "/nowhere/libniwaki-cuda.so";

afterEach(() => vi.unstubAllEnvs());

describe("the backend of a model", () => {
  it("is the CPU unless told otherwise", async () => {
    vi.stubEnv("NIWAKI_BACKEND", "");
    await using model = await Qwen3Model.load(demoModelPath, { threads: 2, tier: "portable" });
    expect(model.device).toMatchObject({ backend: "cpu", threads: 2, tier: "portable" });
    expect(model.device.name).not.toBe("");
  });

  it("is the CPU with auto where there are no CUDA kernels", async () => {
    vi.stubEnv("NIWAKI_CUDA_LIBRARY", nowhere);
    vi.stubEnv("NIWAKI_BACKEND", "auto");
    await using model = await Qwen3Model.load(demoModelPath);
    expect(model.device.backend).toBe("cpu");
  });

  it("refuses cuda where it cannot run, and options of a CPU with it", async () => {
    vi.stubEnv("NIWAKI_CUDA_LIBRARY", nowhere);
    await expect(Qwen3Model.load(demoModelPath, { backend: "cuda" })).rejects.toMatchObject({
      name: "KernelError",
      code: "unsupported",
      message: expect.stringContaining(nowhere),
    });
    await expect(Qwen3Model.load(demoModelPath, { backend: "cuda", threads: 2 })).rejects.toMatchObject({
      code: "invalid-argument",
      argument: "options.threads",
    });
    await expect(Qwen3Model.load(demoModelPath, { backend: "cpu", gpu: 0 })).rejects.toMatchObject({
      code: "invalid-argument",
      argument: "options.gpu",
    });
  });
});

it("trains on the CPU whatever the environment says", async () => {
  vi.stubEnv("NIWAKI_BACKEND", "cuda");
  const messages = [
    { role: "user" as const, content: "Hello." },
    { role: "assistant" as const, content: "Good day." },
  ];
  const trainer = await LoraTrainer.create(demoModelPath, { data: [{ messages }], threads: 1 });
  await trainer.dispose();
});
