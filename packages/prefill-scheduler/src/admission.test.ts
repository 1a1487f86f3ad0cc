import { describe, expect, it } from "vitest";
import { error, make, rows, scheduled, TestSupply } from "./test-scheduling.js";

describe("admission with a supply of blocks", () => {
  it("waits until the whole prompt fits, not its first chunk", () => {
    const blocks = new TestSupply(10, 16);
    const { scheduler, add, step } = make({ chunkSize: 16, watermark: 0 }, blocks);
    const a = add("a", 96);
    add("b", 80);
    // Six blocks are owed to a; b's five do not fit into the other four.
    expect(scheduled(step())).toEqual(["a"]);
    expect([blocks.free, scheduler.waitingCount]).toEqual([9, 1]);
    scheduler.finish(a);
    expect(rows(step())).toEqual([["b", 0, 16]]);
  });

  it("keeps the blocks of half-computed prompts from newcomers, so that none is preempted", () => {
    const run = (blocks: TestSupply) => {
      const { scheduler, add, step } = make({ chunkSize: 16, maxTokensPerStep: 32, watermark: 0 }, blocks);
      add("long", 128);
      for (const name of ["s1", "s2", "s3"]) add(name, 8);
      const order: string[] = [];
      for (let i = 0; i < 7; i++) {
        const plan = step();
        order.push(...scheduled(plan).filter((name) => !order.includes(name)));
        if (plan.preempted.length > 0) order.push("preempted");
      }
      return [order, scheduler.waitingCount];
    };
    expect(run(new TestSupply(9, 16))).toEqual([["long", "s1"], 2]);
    // The same blocks without a supply: whoever's first chunk fits comes in, and loses.
    const blind = new TestSupply(9, 16);
    Object.defineProperty(blind, "supply", { value: undefined });
    expect(run(blind)).toEqual([["long", "s1", "s2", "s3", "preempted"], 1]);
  });

  it("leaves the watermark free beside others, but not when nobody else is there", () => {
    const blocks = new TestSupply(10, 16);
    const { scheduler, add, step } = make({ watermark: 0.2, maxTokensPerStep: 200, chunkSize: 200 }, blocks);
    const a = add("a", 159);
    expect(scheduled(step())).toEqual(["a"]);
    scheduler.finish(a);
    add("b", 60);
    const c = add("c", 80);
    // Nine of ten blocks.
    expect(scheduled(step())).toEqual(["b"]);
    scheduler.abort(c);
    add("d", 64);
    // Eight.
    expect(scheduled(step())).toEqual(["b", "d"]);
  });

  it("refuses at once what all blocks together cannot hold, with the reason", () => {
    const { add } = make({}, new TestSupply(10, 16));
    expect(() => add("a", 161)).toThrow("the request would have 161 tokens, the cache holds 160 for one request");
    expect(() => add("a", 161)).toThrow(error("REQUEST_TOO_LONG", { name: "a", promptTokens: 161 }));
    expect(add("b", 160)).toEqual({ name: "b", promptTokens: 160 });
  });

  it("admits in order: nobody passes the one that does not fit (vLLM: schedule order)", () => {
    const blocks = new TestSupply(100, 16);
    const { add, step } = make({ maxTokensPerStep: 1024, chunkSize: 1024, maxSequencesPerStep: 3 }, blocks);
    for (const [name, tokens] of [
      ["1", 800],
      ["2", 800],
      ["3", 10],
      ["4", 10],
    ] as const)
      add(name, tokens);
    // 50 blocks and 50: two long ones fit, but for the watermark.
    expect(scheduled(step())).toEqual(["1"]);
    expect(scheduled(step())).toEqual(["1"]);
  });

  it("asks a refused request again when blocks have moved, not before", () => {
    const blocks = new TestSupply(4, 16);
    const { scheduler, add, step } = make({}, blocks);
    const a = add("a", 33);
    add("b", 32);
    step();
    expect(blocks.matches).toBe(2);
    for (let i = 0; i < 10; i++) step();
    expect(blocks.matches).toBe(2);
    scheduler.finish(a);
    expect(scheduled(step())).toEqual(["b"]);
    expect(blocks.matches).toBe(3);
  });
});

describe("prefix hits", () => {
  it("start a request behind the tokens that are computed", () => {
    const blocks = new TestSupply(10, 16);
    const { scheduler, add, step } = make({ chunkSize: 16 }, blocks);
    const a = { name: "a", promptTokens: 60 };
    blocks.cached.set(a, 32);
    scheduler.add(a);
    expect(rows(step())).toEqual([["a", 32, 48]]);
    expect(scheduler.progress(a)).toMatchObject({ computedTokens: 48, cachedTokens: 32 });
    expect(rows(step())).toEqual([["a", 48, 60]]);
    add("b", 5);
    expect(rows(step())).toEqual([
      ["a", 60, 61],
      ["b", 0, 5],
    ]);
  });

  it("leave the last token to compute", () => {
    const blocks = new TestSupply(10, 16);
    const { scheduler, step } = make({}, blocks);
    const a = { name: "a", promptTokens: 32 };
    blocks.cached.set(a, 32);
    scheduler.add(a);
    const plan = step();
    expect([rows(plan), plan.chunks[0]!.sample, blocks.free]).toEqual([[["a", 31, 32]], true, 8]);
  });

  it("count for admission: a request that does not fit whole fits behind a hit", () => {
    const blocks = new TestSupply(10, 16);
    const { scheduler, add, step } = make({ watermark: 0 }, blocks);
    add("a", 64);
    step();
    // Its first 80 tokens stand in blocks that others hold, as a shared prefix does.
    const b = { name: "b", promptTokens: 160 };
    blocks.match = (request) => {
      blocks.held.set(request, 5);
      return 80;
    };
    scheduler.add(b);
    expect(rows(step())).toEqual([
      ["a", 64, 65],
      ["b", 80, 143],
    ]);
  });

  it("give their blocks back when the rest does not fit", () => {
    const blocks = new TestSupply(10, 16);
    const { scheduler, add, step } = make({}, blocks);
    add("a", 64);
    step();
    const b = { name: "b", promptTokens: 150 };
    blocks.cached.set(b, 48);
    scheduler.add(b);
    expect(scheduled(step())).toEqual(["a"]);
    expect([blocks.matches, blocks.held.has(b), blocks.free]).toEqual([2, false, 5]);
    expect(scheduler.progress(b)).toMatchObject({ state: "waiting", computedTokens: 0 });
  });

  it("are asked for again after a preemption", () => {
    const blocks = new TestSupply(4, 4);
    const { scheduler, add, step } = make({ watermark: 0 }, blocks);
    const a = add("a", 7);
    const b = add("b", 7);
    step();
    step();
    // What b computed before stays in the cache.
    blocks.cached.set(b, 4);
    const plan = step();
    expect([scheduled(plan), plan.preempted]).toEqual([["a"], [b]]);
    scheduler.finish(a);
    expect(rows(step())).toEqual([["b", 4, 9]]);
    expect(scheduler.progress(b)).toMatchObject({ cachedTokens: 4, preemptions: 1 });
  });
});
