import { describe, expect, it } from "vitest";
import type { StepPlan } from "./step-plan.js";
import { error, make, names, rows, TestBlocks, type TestRequest } from "./test-scheduling.js";

describe("one request", () => {
  it("runs its prompt in chunks, then a row per token", () => {
    const { scheduler, add, step } = make({ chunkSize: 4 });
    const a = add("a", 10);
    expect(rows(step())).toEqual([["a", 0, 4]]);
    expect(scheduler.progress(a)).toMatchObject({ state: "running", totalTokens: 10, computedTokens: 4 });
    expect(rows(step())).toEqual([["a", 4, 8]]);
    expect(step()).toMatchObject({
      number: 3,
      chunks: [{ request: a, start: 8, end: 10, sample: true }],
      tokens: 2,
      preempted: [],
    });
    expect(scheduler.progress(a)).toEqual({
      state: "running",
      promptTokens: 10,
      totalTokens: 11,
      computedTokens: 10,
      cachedTokens: 0,
      preemptions: 0,
    });
    expect(rows(step())).toEqual([["a", 10, 11]]);
    expect(rows(step())).toEqual([["a", 11, 12]]);
  });

  it("samples at its end only", () => {
    const { add, step } = make({ chunkSize: 4 });
    add("a", 8);
    expect([step(), step(), step()].map((plan) => plan.chunks[0]!.sample)).toEqual([false, true, true]);
  });

  it("may have a prompt of one token", () => {
    const { add, step } = make();
    add("a", 1);
    expect([rows(step()), rows(step())]).toEqual([[["a", 0, 1]], [["a", 1, 2]]]);
  });

  it("plans nothing while its next token is not known", () => {
    const { scheduler, add } = make();
    const a = add("a", 3);
    scheduler.complete(scheduler.schedule());
    expect(scheduler.schedule()).toMatchObject({ number: 2, chunks: [], tokens: 0, preempted: [] });
    scheduler.append(a, 1);
    expect(rows(scheduler.schedule())).toEqual([["a", 3, 4]]);
  });

  it("is planned the same again until the plan is completed", () => {
    const { scheduler, add, blocks } = make();
    add("a", 20);
    const first = scheduler.schedule();
    expect([scheduler.schedule(), blocks.free]).toEqual([{ ...first, number: 2 }, 9_998]);
  });

  it("takes several tokens from outside as one more prompt", () => {
    const { scheduler, add, step } = make();
    const a = add("a", 3);
    step();
    scheduler.append(a, 4);
    expect(rows(step())).toEqual([["a", 3, 8]]);
  });
});

describe("many requests", () => {
  it("shares 1024 rows with a cap of 400 among three prompts of 800 (vLLM: concurrent partial prefills)", () => {
    const { add, step } = make({ maxTokensPerStep: 1024, chunkSize: 400 });
    for (const name of ["a", "b", "c"]) add(name, 800);
    const lengths = (plan: StepPlan<TestRequest>) => plan.chunks.map(({ start, end }) => end - start);
    expect(lengths(step())).toEqual([400, 400, 224]);
    expect(lengths(step())).toEqual([400, 400, 224]);
    expect(lengths(step())).toEqual([1, 1, 352]);
    expect(lengths(step())).toEqual([1, 1, 1]);
  });

  it("puts decode rows before the chunk of an earlier prompt, and fills the step with the chunk", () => {
    const { add, step } = make({ maxTokensPerStep: 8, maxSequencesPerStep: 4, chunkSize: 6 });
    add("long", 20);
    add("b", 2);
    expect(rows(step())).toEqual([
      ["long", 0, 6],
      ["b", 0, 2],
    ]);
    add("c", 1);
    expect(rows(step())).toEqual([
      ["b", 2, 3],
      ["long", 6, 12],
      ["c", 0, 1],
    ]);
    expect(rows(step())).toEqual([
      ["b", 3, 4],
      ["c", 1, 2],
      ["long", 12, 18],
    ]);
    expect(rows(step())).toEqual([
      ["b", 4, 5],
      ["c", 2, 3],
      ["long", 18, 20],
    ]);
  });

  it("counts the last token of a prompt as prompt, not as a decode row", () => {
    const { add, step } = make({ chunkSize: 4 });
    add("a", 5);
    add("b", 1);
    step();
    expect(rows(step())).toEqual([
      ["b", 1, 2],
      ["a", 4, 5],
    ]);
  });

  it("runs no more of them at once than it may", () => {
    const { scheduler, add, step } = make({ maxSequencesPerStep: 2 });
    const a = add("a", 1);
    add("b", 1);
    add("c", 1);
    expect(rows(step()).map(([name]) => name)).toEqual(["a", "b"]);
    expect([scheduler.runningCount, scheduler.waitingCount]).toEqual([2, 1]);
    scheduler.finish(a);
    expect(rows(step()).map(([name]) => name)).toEqual(["b", "c"]);
  });

  it("admits by arrival: a short request does not pass a long one that waits for blocks", () => {
    const { scheduler, add, step } = make({ chunkSize: 32 }, new TestBlocks(3, 16));
    const a = add("a", 32);
    step();
    add("long", 32);
    add("short", 1);
    expect(rows(step())).toEqual([["a", 32, 33]]);
    scheduler.finish(a);
    expect(rows(step())).toEqual([
      ["long", 0, 32],
      ["short", 0, 1],
    ]);
  });
});

describe("preemption", () => {
  it("takes the blocks of the last come, computes it anew, and admits nobody in that step", () => {
    const { scheduler, blocks, add, step } = make({}, new TestBlocks(4, 4));
    const [a, b] = [add("a", 4), add("b", 7)];
    step();
    const c = add("c", 1);
    // a needs a second block; b filled two, and one is left for it.
    expect(rows(step())).toEqual([
      ["a", 4, 5],
      ["b", 7, 8],
    ]);
    expect(blocks.free).toBe(0);
    // b needs a third block, and is itself the last come.
    const plan = step();
    expect([rows(plan), names(plan.preempted), blocks.free]).toEqual([[["a", 5, 6]], ["b"], 2]);
    expect(scheduler.progress(b)).toMatchObject({
      state: "waiting",
      promptTokens: 7,
      totalTokens: 9,
      computedTokens: 0,
      preemptions: 1,
    });
    expect(blocks.held.has(b)).toBe(false);
    // b stands before c, and its nine tokens do not fit yet.
    expect(rows(step())).toEqual([["a", 6, 7]]);
    scheduler.finish(a);
    expect(rows(step())).toEqual([
      ["b", 0, 9],
      ["c", 0, 1],
    ]);
    scheduler.finish(b);
    scheduler.finish(c);
    expect([blocks.free, blocks.held.size]).toEqual([4, 0]);
  });

  it("preempts several until the earlier one fits", () => {
    const { add, step, blocks } = make({}, new TestBlocks(4, 1));
    for (const name of ["a", "b", "c", "d"]) add(name, 1);
    step();
    const plan = step();
    expect([rows(plan), names(plan.preempted), blocks.free]).toEqual([
      [
        ["a", 1, 2],
        ["b", 1, 2],
      ],
      ["d", "c"],
      0,
    ]);
  });

  it("takes a decode row back when an earlier prompt needs the blocks", () => {
    const { add, step, blocks } = make(
      { maxTokensPerStep: 8, chunkSize: 4, maxSequencesPerStep: 4 },
      new TestBlocks(3, 4),
    );
    add("a", 12);
    add("b", 2);
    expect(rows(step())).toEqual([
      ["a", 0, 4],
      ["b", 0, 2],
    ]);
    expect(rows(step())).toEqual([
      ["b", 2, 3],
      ["a", 4, 8],
    ]);
    const plan = step();
    expect([rows(plan), names(plan.preempted), plan.tokens, blocks.free]).toEqual([[["a", 8, 12]], ["b"], 4, 0]);
  });

  it("counts the rows that are left after a decode row was taken back", () => {
    const { scheduler, add, step, blocks } = make({ maxTokensPerStep: 8, chunkSize: 4 }, new TestBlocks(13, 1));
    add("a", 1);
    const [b, c] = [add("b", 2), add("c", 1)];
    add("d", 4);
    expect(step().tokens).toBe(8);
    scheduler.append(b, 20);
    scheduler.append(c, 20);
    const plan = step();
    expect([rows(plan), names(plan.preempted), plan.tokens, blocks.free]).toEqual([
      [
        ["a", 1, 2],
        ["b", 2, 6],
        ["c", 1, 4],
      ],
      ["d"],
      8,
      1,
    ]);
  });

  it("resumes the earliest first, with all tokens it had", () => {
    const { scheduler, add, step } = make({}, new TestBlocks(6, 1));
    const a = add("a", 2);
    add("b", 2);
    add("c", 2);
    step();
    expect(names(step().preempted)).toEqual(["c"]);
    expect(names(step().preempted)).toEqual(["b"]);
    scheduler.finish(a);
    const plan = step();
    expect(rows(plan)).toEqual([["b", 0, 4]]);
    expect(plan.chunks[0]!.sample).toBe(true);
  });
});

describe("errors", () => {
  it("refuses what can never fit, at once", () => {
    const { scheduler, add } = make({ maxTokensPerRequest: 10 });
    expect(() => add("a", 11)).toThrow(error("REQUEST_TOO_LONG", { name: "a", promptTokens: 11 }));
    const b = add("b", 10);
    expect(() => scheduler.append(b, 1)).toThrow(error("REQUEST_TOO_LONG", b));
    expect(scheduler.progress(b).totalTokens).toBe(10);
  });

  it("refuses empty prompts, duplicates and counts that make no sense", () => {
    const { scheduler, add } = make();
    expect(() => add("a", 0)).toThrow(error("INVALID_ARGUMENT", 0));
    expect(() => add("a", 1.5)).toThrow(error("INVALID_ARGUMENT", 1.5));
    expect(() => add("a", 1, { priority: 1001 })).toThrow(error("INVALID_ARGUMENT", 1001));
    expect(() => add("a", 1, { priority: 0.5 })).toThrow(error("INVALID_ARGUMENT", 0.5));
    expect([scheduler.waitingCount, scheduler.runningCount]).toEqual([0, 0]);
    const b = add("b", 3);
    expect(() => scheduler.add(b)).toThrow(error("DUPLICATE_REQUEST", b));
    expect(() => scheduler.append(b, 0)).toThrow(error("INVALID_ARGUMENT", 0));
    expect(() => scheduler.advance(b, 1)).toThrow(error("INVALID_ARGUMENT", 1));
    const plan = scheduler.schedule();
    expect(() => scheduler.complete(plan, -1)).toThrow(error("INVALID_ARGUMENT", -1));
    expect(() => scheduler.observe(plan, Infinity)).toThrow(error("INVALID_ARGUMENT", Infinity));
    expect([scheduler.progress(b).computedTokens, scheduler.stepCost]).toEqual([0, null]);
    expect(() => scheduler.advance(b, 4)).toThrow(error("INVALID_ARGUMENT", 4));
    scheduler.checkIntegrity();
  });

  it.each([
    [{ maxTokensPerStep: 0 }, 0],
    [{ maxSequencesPerStep: 0 }, 0],
    [{ chunkSize: 0 }, 0],
    [{ maxTokensPerRequest: Number.NaN }, Number.NaN],
    [{ maxTokensPerStep: 4, maxSequencesPerStep: 5 }, 5],
    [{ policy: "fifo" as "interleaved" }, "fifo"],
    [{ targetMilliseconds: 0 }, 0],
    [{ targetMilliseconds: Number.NaN }, Number.NaN],
    [{ targetMilliseconds: 30, policy: "prefill-first" as const }, 30],
    [{ watermark: 1 }, 1],
    [{ watermark: -0.1 }, -0.1],
    [{ agingTokens: 0 }, 0],
  ])("refuses the limits %j", (options, value) => {
    expect(() => make(options)).toThrow(error("INVALID_ARGUMENT", value));
  });

  it("refuses to take back what was not appended, or is computed", () => {
    const { scheduler, add, step } = make();
    const a = add("a", 5);
    expect(() => scheduler.retract(a, 1)).toThrow(error("INVALID_ARGUMENT", 1));
    step();
    scheduler.append(a, 1);
    expect(() => scheduler.retract(a, 3)).toThrow(error("INVALID_ARGUMENT", 3));
    scheduler.retract(a, 2);
    expect(scheduler.progress(a)).toMatchObject({ totalTokens: 5, computedTokens: 5 });
    scheduler.append(a, 1);
    scheduler.complete(scheduler.schedule());
    expect(() => scheduler.retract(a, 1)).toThrow(error("INVALID_ARGUMENT", 1));
  });

  it("refuses to recycle a plan twice, or one that is not its own", () => {
    const { scheduler, add } = make();
    add("a", 5);
    const plan = scheduler.schedule();
    expect(() => scheduler.recycle({ ...plan })).toThrow(error("INVALID_ARGUMENT", { ...plan }));
    scheduler.recycle(plan);
    expect(() => scheduler.recycle(plan)).toThrow(error("INVALID_ARGUMENT", plan));
  });

  it("refuses a plan that was completed, before any change", () => {
    const { scheduler, add } = make();
    const [a, b] = [add("a", 3), add("b", 3)];
    const plan = scheduler.schedule();
    scheduler.advance(b, 3);
    expect(() => scheduler.complete(plan)).toThrow(error("STALE_PLAN", b));
    expect(scheduler.progress(a).computedTokens).toBe(0);
  });

  it("says so when a request that is alone gets no blocks, and goes on without it", () => {
    const { scheduler, blocks, add, step } = make({}, new TestBlocks(2, 4));
    const a = add("a", 8);
    step();
    const b = add("b", 9);
    expect(() => scheduler.schedule()).toThrow(error("OUT_OF_BLOCKS", a));
    scheduler.abort(a);
    expect(() => scheduler.schedule()).toThrow(error("OUT_OF_BLOCKS", b));
    scheduler.abort(b);
    add("c", 4);
    expect([rows(step()), blocks.free]).toEqual([[["c", 0, 4]], 1]);
  });
});
