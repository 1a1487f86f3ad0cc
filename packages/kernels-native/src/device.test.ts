import { describe, expect, it } from "vitest";
import { cpuTiers, Device } from "./device.js";
import { failure } from "./test-errors.js";
import { slowPlan } from "./test-slow-plan.js";
import { randomTensor } from "./test-tensors.js";

describe("Device", () => {
  it("lists tiers, best first, portable last", () => {
    const tiers = cpuTiers();
    expect(tiers.at(-1)).toBe("portable");
    expect(new Set(tiers).size).toBe(tiers.length);
  });

  it("opens with threads and a tier, or chooses them", async () => {
    await using chosen = Device.open();
    expect(chosen.threads).toBeGreaterThanOrEqual(1);
    expect(cpuTiers()).toContain(chosen.tier);
    await using asked = Device.open({ threads: 3, tier: "portable" });
    expect(asked.threads).toBe(3);
    expect(asked.tier).toBe("portable");
  });

  it("refuses options that are out of range", async () => {
    for (const threads of [0, -1, 1.5, 257, Number.NaN, "2" as unknown as number]) {
      const error = await failure("invalid-argument", () => Device.open({ threads }));
      expect(error.argument).toBe("options.threads");
      expect(error.value).toBe(threads);
    }
    const error = await failure("invalid-argument", () => Device.open({ threads: 0 }));
    expect(error.message).toBe("options.threads is 0: it must be an integer from 1 to 256");
    await failure("invalid-argument", () => Device.open({ tier: "" }));
    await failure("invalid-argument", () => Device.open(null as never));
  });

  it("names the tiers that exist when asked for another", async () => {
    const error = await failure("unsupported", () => Device.open({ tier: "abacus" }));
    expect(error.message).toContain("abacus");
    expect(error.message).toContain("portable");
  });

  it("leaves the event loop free during a run", async () => {
    await using device = Device.open({ threads: 1 });
    const { plan, step } = await slowPlan(device);
    let turns = 0;
    let running = true;
    const turn = () => {
      turns++;
      if (running) setImmediate(turn);
    };
    setImmediate(turn);
    await plan.run(step);
    running = false;
    expect(turns).toBeGreaterThan(20);
  });

  it("cancels what is running and waiting when it is disposed", async () => {
    const device = Device.open({ threads: 2 });
    const { plan, step } = await slowPlan(device);
    const jobs = [plan.run(step), plan.run(step), device.loadMatrix(randomTensor("late", "F32", 64, 64, 1))];
    const settled = Promise.allSettled(jobs);
    const disposal = device.dispose();
    expect(device.dispose()).toBe(disposal);
    await disposal;
    for (const job of await settled) {
      expect(job).toMatchObject({ status: "rejected", reason: { name: "KernelError", code: "cancelled" } });
    }
  });

  it("refuses everything after dispose, plans included", async () => {
    const device = Device.open({ threads: 1 });
    const { plan, step } = await slowPlan(device);
    await device.dispose();
    const error = await failure("disposed", () => plan.run(step));
    expect(error.message).toBe("this Device has been disposed and cannot be used any more");
    await failure("disposed", () => device.loadMatrix(randomTensor("w", "F32", 2, 16, 1)));
    await failure("disposed", () => device.loadVector(randomTensor("w", "F32", 1, 16, 1)));
    await failure("disposed", () =>
      device.encode({ maxRows: 1, maxOutputs: 1, vocabulary: 1, blockSize: 16 }, () => null!),
    );
    await failure("disposed", () =>
      device.createKvCache({ layers: 1, kvHeads: 1, headDim: 16, blockSize: 16, blocks: 1, type: "f16" }),
    );
    plan.dispose();
  });
});
