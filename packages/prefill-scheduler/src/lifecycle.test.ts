import { describe, expect, it } from "vitest";
import { error, make, names, rows, TestBlocks, type TestRequest, TestSupply } from "./test-scheduling.js";

describe("the end of a request", () => {
  it("returns every block at any moment, also while its step runs", () => {
    const { scheduler, blocks, add } = make({ maxSequencesPerStep: 2 });
    const [a, b, c] = [add("a", 20), add("b", 30), add("c", 40)];
    const plan = scheduler.schedule();
    expect([scheduler.abort(c), scheduler.abort(a)]).toEqual([true, true]);
    scheduler.complete(plan);
    expect(scheduler.progress(b).computedTokens).toBe(30);
    expect([...blocks.held.keys()]).toEqual([b]);
    scheduler.finish(b);
    expect([blocks.free, scheduler.runningCount, scheduler.waitingCount]).toEqual([10_000, 0, 0]);
    scheduler.checkIntegrity();
  });

  it("ends one at its stop while the others go on (vLLM: stop conditions)", () => {
    const { scheduler, blocks, add, step } = make({}, new TestBlocks(8, 16));
    const [a, b] = [add("a", 20), add("b", 40)];
    const plan = scheduler.schedule();
    scheduler.complete(plan);
    // a's token ends its text, b's does not.
    scheduler.finish(a);
    scheduler.append(b, 1);
    expect([blocks.free, scheduler.runningCount, blocks.held.has(a)]).toEqual([5, 1, false]);
    expect(rows(step())).toEqual([["b", 40, 41]]);
    // Several tokens at once, of which the last ends it: it is over, and its room is free in the next step.
    scheduler.append(b, 3);
    add("c", 124);
    expect(rows(step())).toEqual([
      ["b", 41, 45],
      ["c", 0, 60],
    ]);
    scheduler.finish(b);
    expect([rows(step()), blocks.free]).toEqual([[["c", 60, 124]], 0]);
  });

  it("leaves nothing behind of a thousand requests (vLLM: memory leak)", () => {
    const { scheduler, blocks, add, step } = make({}, new TestBlocks(40, 4));
    const left = new Map<TestRequest, number>();
    for (let i = 0; i < 1000; i++) left.set(add(`${i}`, 1 + (i % 40), { client: `${i % 7}` }), 1 + (i % 13));
    for (let steps = 0; left.size > 0; steps++) {
      if (steps > 20_000) expect.fail("the requests do not end");
      for (const { request, sample } of step().chunks) {
        if (!sample) continue;
        const tokens = left.get(request)! - 1;
        left.set(request, tokens);
        if (tokens > 0) continue;
        scheduler.finish(request);
        left.delete(request);
      }
    }
    expect([scheduler.runningCount, scheduler.waitingCount, blocks.free, blocks.held.size]).toEqual([0, 0, 40, 0]);
    scheduler.checkIntegrity();
  });

  it("is harmless to abort twice, an error to finish twice", () => {
    const { scheduler, add } = make();
    const a = add("a", 3);
    scheduler.finish(a);
    expect(scheduler.abort(a)).toBe(false);
    for (const use of [
      () => scheduler.finish(a),
      () => scheduler.append(a, 1),
      () => scheduler.retract(a, 1),
      () => scheduler.advance(a, 1),
      () => scheduler.progress(a),
    ]) {
      expect(use).toThrow(error("UNKNOWN_REQUEST", a));
    }
  });
});

describe("steps under way at once", () => {
  it("plans what does not wait for a result (vLLM: concurrent batches)", () => {
    const { scheduler, add } = make({ maxTokensPerStep: 1024, maxSequencesPerStep: 2, chunkSize: 1024 });
    const a = add("a", 512);
    const first = scheduler.schedule();
    scheduler.complete(first);
    const b = add("b", 512);
    const second = scheduler.schedule();
    scheduler.complete(second);
    expect([rows(first), rows(second)]).toEqual([[["a", 0, 512]], [["b", 0, 512]]]);
    expect(scheduler.schedule().tokens).toBe(0);
    scheduler.append(a, 1);
    expect(rows(scheduler.schedule())).toEqual([["a", 512, 513]]);
    scheduler.append(b, 1);
    expect(rows(scheduler.schedule())).toEqual([
      ["a", 512, 513],
      ["b", 512, 513],
    ]);
  });

  it("has rows for tokens that are still to come, and takes back those that do not", () => {
    const { scheduler, blocks, add } = make({}, new TestSupply(10, 4));
    const [a, b, c] = [add("a", 3), add("b", 4), add("c", 5)];
    const running = scheduler.schedule();
    scheduler.complete(running);
    for (const { request } of running.chunks) scheduler.append(request, 1);
    const prepared = scheduler.schedule();
    expect(rows(prepared)).toEqual([
      ["a", 3, 4],
      ["b", 4, 5],
      ["c", 5, 6],
    ]);
    // The step has ended: a goes on, b does not, c waits for its reader.
    scheduler.finish(b);
    scheduler.retract(c, 1);
    const started = { ...prepared, tokens: 1, chunks: prepared.chunks.filter(({ request }) => request === a) };
    scheduler.complete(started);
    scheduler.observe(started, 5);
    scheduler.recycle(prepared);
    scheduler.checkIntegrity();
    expect(scheduler.schedule().tokens).toBe(0);
    scheduler.append(c, 1);
    expect(rows(scheduler.schedule())).toEqual([["c", 5, 6]]);
    for (const request of [a, c]) scheduler.finish(request);
    expect(blocks.free).toBe(10);
  });

  it("lets decode steps follow while nobody waits, as many as may and have their blocks", () => {
    const { scheduler, blocks, add, step } = make({}, new TestSupply(10, 4));
    const [a, b] = [add("a", 3), add("b", 4)];
    const prompts = scheduler.schedule();
    expect(scheduler.following(prompts, 5)).toBe(0);
    scheduler.complete(prompts);
    for (const request of [a, b]) scheduler.append(request, 1);
    scheduler.complete(scheduler.schedule());
    for (const request of [a, b]) scheduler.append(request, 1);
    const plan = scheduler.schedule();
    expect(rows(plan)).toEqual([
      ["a", 4, 5],
      ["b", 5, 6],
    ]);
    const following = (most: number) => scheduler.following(plan, most);
    expect([following(2), following(0)]).toEqual([2, 0]);
    expect(blocks.free).toBe(6);
    expect(following(4)).toBe(4);
    // a and b have room for 5 + 4 and 6 + 4 tokens.
    expect(blocks.free).toBe(4);
    expect(following(99)).toBe(0);
    expect(() => following(-1)).toThrow(error("INVALID_ARGUMENT", -1));
    add("c", 1);
    expect(following(1)).toBe(0);

    scheduler.complete(plan);
    for (const request of [a, b]) scheduler.append(request, 3);
    scheduler.advance(a, 2);
    scheduler.advance(b, 2);
    expect(rows(step())).toEqual([
      ["a", 7, 8],
      ["b", 8, 9],
      ["c", 0, 1],
    ]);
    scheduler.checkIntegrity();
  });

  it("makes plans of the objects of recycled ones, with none of their content", () => {
    const { scheduler, add, step } = make();
    for (const name of ["a", "b", "c"]) add(name, 3);
    const first = step();
    const [, second] = first.chunks;
    scheduler.recycle(first);
    expect(names(first.preempted)).toEqual([]);
    expect(first.chunks.map(({ request }) => request)).toEqual([undefined, undefined, undefined]);
    const next = scheduler.schedule();
    expect(next.chunks[1]).toBe(second);
    expect(rows(next)).toEqual([
      ["a", 3, 4],
      ["b", 3, 4],
      ["c", 3, 4],
    ]);
    for (const { request } of next.chunks.slice(1)) scheduler.finish(request);
    scheduler.recycle(next);
    expect(rows(scheduler.schedule())).toEqual([["a", 3, 4]]);
  });

  it("may preempt a request whose step is running, which keeps its token (vLLM: preempt during execution)", () => {
    const { scheduler, add } = make({ maxTokensPerStep: 100, chunkSize: 100 }, new TestBlocks(10, 16));
    const a = add("a", 80);
    scheduler.complete(scheduler.schedule());
    const b = add("b", 80);
    const second = scheduler.schedule();
    scheduler.append(a, 1);
    // Both hold five blocks, and there are ten.
    const third = scheduler.schedule();
    expect([rows(third), names(third.preempted), scheduler.runningCount]).toEqual([[["a", 80, 81]], ["b"], 1]);
    scheduler.complete(second);
    scheduler.append(b, 1);
    expect(scheduler.progress(b)).toMatchObject({
      state: "waiting",
      totalTokens: 81,
      computedTokens: 0,
      preemptions: 1,
    });
    scheduler.complete(third);
    scheduler.finish(a);
    expect(rows(scheduler.schedule())).toEqual([["b", 0, 81]]);
    // Admitted anew, it is still none of the second plan's.
    scheduler.complete(second);
    expect(scheduler.progress(b).computedTokens).toBe(0);
    scheduler.checkIntegrity();
  });

  it("passes over a request that was aborted and added again meanwhile", () => {
    const { scheduler, add } = make();
    const a = add("a", 10);
    const plan = scheduler.schedule();
    scheduler.abort(a);
    scheduler.add(a);
    scheduler.complete(plan);
    expect(scheduler.progress(a)).toMatchObject({ state: "waiting", computedTokens: 0 });
    const next = scheduler.schedule();
    scheduler.complete(plan);
    expect(scheduler.progress(a)).toMatchObject({ state: "running", computedTokens: 0 });
    scheduler.complete(next);
    expect(scheduler.progress(a).computedTokens).toBe(10);
  });
});
