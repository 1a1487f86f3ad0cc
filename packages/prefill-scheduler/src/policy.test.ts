import { describe, expect, it } from "vitest";
import type { Policy } from "./scheduler-options.js";
import { make, rows, scheduled, TestBlocks } from "./test-scheduling.js";

/** Two chats that decode, then a prompt of 12 tokens; the step's rows as [name, rows]. */
function plans(policy: Policy, count: number) {
  const { add, step } = make({ maxTokensPerStep: 8, maxSequencesPerStep: 4, chunkSize: 6, policy });
  add("a", 1);
  add("b", 1);
  step();
  add("long", 12);
  return Array.from({ length: count }, () =>
    step().chunks.map(({ request, start, end }) => [request.name, end - start]),
  );
}

describe("a prompt beside two chats", () => {
  it("shares every step with them when interleaved", () => {
    expect(plans("interleaved", 3)).toEqual([
      [
        ["a", 1],
        ["b", 1],
        ["long", 6],
      ],
      [
        ["a", 1],
        ["b", 1],
        ["long", 6],
      ],
      [
        ["a", 1],
        ["b", 1],
        ["long", 1],
      ],
    ]);
  });

  it("goes before them with prefill-first", () => {
    expect(plans("prefill-first", 4)).toEqual([
      [["long", 6]],
      [["long", 6]],
      [
        ["a", 1],
        ["b", 1],
        ["long", 1],
      ],
      [
        ["a", 1],
        ["b", 1],
        ["long", 1],
      ],
    ]);
  });

  it("waits for their end with decode-priority", () => {
    const chats = [
      ["a", 1],
      ["b", 1],
    ];
    expect(plans("decode-priority", 4)).toEqual([chats, chats, chats, chats]);
    const { scheduler, add, step } = make({ maxTokensPerStep: 8, chunkSize: 6, policy: "decode-priority" });
    const a = add("a", 1);
    step();
    add("long", 12);
    expect(rows(step())).toEqual([["a", 1, 2]]);
    scheduler.finish(a);
    expect([rows(step()), rows(step()), rows(step())]).toEqual([
      [["long", 0, 6]],
      [["long", 6, 12]],
      [["long", 12, 13]],
    ]);
  });
});

describe("nothing starves", () => {
  it("with prefill-first, when newcomers never end", () => {
    const { scheduler, add, step } = make({ maxSequencesPerStep: 4, policy: "prefill-first" });
    add("chat", 1);
    step();
    let rowsOfChat = 0;
    for (let i = 0; i < 100; i++) {
      add(`${i}`, 1);
      // Each of them ends with its first token.
      for (const { request } of step().chunks) {
        if (request.name === "chat") rowsOfChat++;
        else scheduler.finish(request);
      }
    }
    // After four newcomers the others have a row; two of the next four came meanwhile and share a step.
    expect(rowsOfChat).toBe(25);
  });

  it("with decode-priority, when newcomers never end", () => {
    const { scheduler, add, step } = make({ maxSequencesPerStep: 4, policy: "decode-priority" });
    const left = new Map([[add("long", 200), 5]]);
    for (let i = 0; i < 300 && [...left.keys()].some(({ name }) => name === "long"); i++) {
      if (i % 2 === 0) left.set(add(`${i}`, 2), 5);
      for (const { request, sample } of step().chunks) {
        if (!sample) continue;
        left.set(request, left.get(request)! - 1);
        if (left.get(request) === 0) {
          scheduler.finish(request);
          left.delete(request);
        }
      }
    }
    expect([...left.keys()].some(({ name }) => name === "long")).toBe(false);
  });

  it.each(["prefill-first", "interleaved", "decode-priority"] as const)(
    "with %s, in a cache that holds only one of them whole",
    (policy) => {
      const { scheduler, add, step, blocks } = make({ policy, maxTokensPerRequest: 24 }, new TestBlocks(6, 4));
      const left = new Map(["a", "b", "c", "d"].map((name) => [add(name, 10), 12]));
      for (let i = 0; left.size > 0; i++) {
        if (i > 500) expect.fail("starved");
        for (const { request, sample } of step().chunks) {
          if (!sample) continue;
          left.set(request, left.get(request)! - 1);
          if (left.get(request) === 0) {
            scheduler.finish(request);
            left.delete(request);
          }
        }
      }
      expect(blocks.free).toBe(6);
    },
  );
});

describe("a target in milliseconds", () => {
  /** Runs beside two chats a prompt of 2,000 tokens, on a machine that takes `cost(rows, context)` ms for a step. */
  function run(targetMilliseconds: number, cost: (rows: number, attended: number) => number) {
    const { scheduler, add, step } = make({
      maxTokensPerStep: 512,
      chunkSize: 512,
      maxTokensPerRequest: 5000,
      targetMilliseconds,
    });
    add("a", 50);
    add("b", 50);
    const times: number[] = [];
    const chunks: number[] = [];
    const go = () => {
      const plan = scheduler.schedule();
      let attended = 0;
      for (const { start, end } of plan.chunks) for (let i = start; i < end; i++) attended += i + 1;
      const milliseconds = cost(plan.tokens, attended);
      scheduler.complete(plan, milliseconds);
      for (const { request, sample } of plan.chunks) if (sample) scheduler.append(request, 1);
      return { plan, milliseconds };
    };
    for (let i = 0; i < 50; i++) go();
    const long = add("long", 2000);
    while (scheduler.progress(long).totalTokens === 2000) {
      const { plan, milliseconds } = go();
      times.push(milliseconds);
      chunks.push(plan.tokens - 2);
    }
    return { times, chunks, scheduler, step };
  }

  it("makes chunks as long as it allows, shorter as the context grows", () => {
    const { times, chunks, scheduler } = run(50, (rows, attended) => 10 + 0.2 * rows + 0.0004 * attended);
    expect(Math.max(...times)).toBeLessThan(51);
    const full = chunks.slice(5, -1);
    // Behind no context 200 rows would take 40 ms.
    expect(Math.max(...full)).toBeLessThan(200);
    expect(full.at(-1)!).toBeLessThan(0.7 * full[0]!);
    expect(times.slice(5, -1).every((time) => time > 45)).toBe(true);
    const { fixed, perToken, perContextToken } = scheduler.stepCost!;
    expect(fixed).toBeCloseTo(10, 0);
    expect(perToken).toBeCloseTo(0.2, 1);
    expect(perContextToken).toBeCloseTo(0.0004, 4);
  });

  it("holds on a machine that is not linear: memory-bound below 64 rows, whole tiles of 32 above", () => {
    const { times } = run(60, (rows) => Math.max(20, 0.5 * 32 * Math.ceil(rows / 32)));
    expect(Math.max(...times)).toBeLessThan(1.3 * 60);
  });

  it("gives prompts a quarter of the time of the decode rows where those alone take longer, and a row at least", () => {
    const cheap = run(5, (rows) => 10 + 0.5 * rows);
    // Two decode rows take 11 ms, and 5.5 rows more a quarter of that: 4.9 with two hundredths kept for the usual error.
    expect(new Set(cheap.chunks.slice(5, -1))).toEqual(new Set([4]));
    expect(Math.max(...cheap.times)).toBeLessThan(1.25 * 11);
    expect(new Set(run(5, (rows) => 10 + 5 * rows).chunks)).toEqual(new Set([1]));
  });

  it("does not limit prompts that nobody waits beside", () => {
    const { add, step } = make({ targetMilliseconds: 1, chunkSize: 64 });
    add("a", 100);
    expect([rows(step(1000)), rows(step(1000))]).toEqual([[["a", 0, 64]], [["a", 64, 100]]]);
    add("b", 100);
    expect(scheduled(step(1000))).toEqual(["a", "b"]);
  });
});
