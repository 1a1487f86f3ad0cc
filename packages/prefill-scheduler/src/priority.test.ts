import { describe, expect, it } from "vitest";
import { make, names, rows, scheduled, TestBlocks } from "./test-scheduling.js";

describe("priorities", () => {
  it("order those that wait, then arrival does (vLLM: mixed priority and arrival)", () => {
    const { add, step } = make();
    add("a", 1, { priority: 2 });
    add("b", 1, { priority: 1 });
    add("c", 1, { priority: 1 });
    add("d", 1);
    add("e", 1, { priority: -3 });
    expect(scheduled(step())).toEqual(["e", "d", "b", "c", "a"]);
  });

  it("fill places as they come free (vLLM: limited slots)", () => {
    const { scheduler, add, step } = make({ maxSequencesPerStep: 1 });
    const low = add("low", 10, { priority: 3 });
    expect(scheduled(step())).toEqual(["low"]);
    add("mid", 10, { priority: 2 });
    add("high", 10, { priority: 0 });
    // Who runs is not put out for a place, only for blocks.
    expect(scheduled(step())).toEqual(["low"]);
    scheduler.finish(low);
    expect(scheduled(step())).toEqual(["high"]);
  });

  it("choose who loses its blocks: the least important, though it came first (vLLM: victim selection)", () => {
    const { scheduler, add, step } = make({}, new TestBlocks(6, 4));
    const low = add("low", 8, { priority: 5 });
    step();
    add("high", 8);
    const later = add("later", 3, { priority: 1 });
    expect(rows(step())).toEqual([
      ["low", 8, 9],
      ["high", 0, 8],
      ["later", 0, 3],
    ]);
    const plan = step();
    expect([scheduled(plan), names(plan.preempted)]).toEqual([["high", "later"], ["low"]]);
    expect(scheduler.progress(low)).toMatchObject({ state: "waiting", totalTokens: 10, preemptions: 1 });
    // It goes on when there is room again, with all that it had.
    scheduler.finish(later);
    expect(rows(step())).toEqual([
      ["high", 9, 10],
      ["low", 0, 10],
    ]);
  });

  it("take the last come among equals (vLLM: equal priority preemption)", () => {
    const { add, step } = make({}, new TestBlocks(3, 4));
    for (const name of ["a", "b", "c"]) add(name, 4, { priority: 7 });
    step();
    const plan = step();
    expect([scheduled(plan), names(plan.preempted)]).toEqual([["a", "b"].slice(0, 1), ["c", "b"]]);
  });

  it("are outlived: a stream of important requests does not starve the one that waits", () => {
    const { scheduler, add, step } = make({ maxSequencesPerStep: 1, agingTokens: 100 });
    add("first", 10);
    step();
    const low = add("low", 10, { priority: 3 });
    let steps = 0;
    for (let served = false; !served; steps++) {
      if (steps > 100) expect.fail("starved");
      add(`${steps}`, 10);
      for (const { request } of step().chunks) {
        scheduler.finish(request);
        served = request === low;
      }
    }
    // The first one's last step, 31 that came while three levels, 300 tokens, were served, and then it.
    expect(steps).toBe(33);
  });
});

describe("clients", () => {
  it("take turns: one request does not wait behind another's hundred", () => {
    const { add, step } = make({ maxTokensPerStep: 10, chunkSize: 10, maxSequencesPerStep: 4 });
    for (let i = 0; i < 100; i++) add(`a${i}`, 10, { client: "a" });
    expect(scheduled(step())).toEqual(["a0"]);
    add("b0", 1, { client: "b" });
    add("b1", 1, { client: "b" });
    expect(scheduled(step())).toEqual(["a0", "b0", "b1", "a1"]);
  });

  it("have no credit for the time that they were away", () => {
    const { scheduler, add, step } = make({ maxSequencesPerStep: 1 });
    const finishAll = (count: number) => {
      const order: string[] = [];
      for (let i = 0; i < count; i++) {
        for (const { request } of step().chunks) {
          order.push(request.name[0]!);
          scheduler.finish(request);
        }
      }
      return order.join("");
    };
    for (let i = 0; i < 50; i++) add(`a${i}`, 10, { client: "a" });
    expect(finishAll(40)).toBe("a".repeat(40));
    // b was served nothing yet, and still they take turns from now on.
    for (let i = 0; i < 10; i++) add(`b${i}`, 10, { client: "b" });
    const order = finishAll(12);
    expect([...order].filter((name) => name === "b").length).toBeGreaterThanOrEqual(5);
    expect([...order].filter((name) => name === "b").length).toBeLessThanOrEqual(7);
  });

  it("are not served more by coming under ever new names than one that waits", () => {
    const { scheduler, add, step } = make({ maxSequencesPerStep: 1 });
    // Ahead of its share at first: alone beside one that asks for little.
    for (let i = 0; i < 20; i++) add(`a${i}`, 50, { client: "a" });
    add("other", 1, { client: "other" });
    const served: string[] = [];
    for (let i = 0; served.filter((name) => name.startsWith("a")).length < 20; i++) {
      if (i > 300) expect.fail("starved");
      add(`new${i}`, 50, { client: `new${i}` });
      for (const { request } of step().chunks) {
        served.push(request.name);
        scheduler.finish(request);
      }
    }
    expect(served.slice(0, 4)).toEqual(["a0", "other", "new0", "new1"]);
  });

  it("weigh against priority: a level is worth `agingTokens` of service", () => {
    const { scheduler, add, step } = make({ maxSequencesPerStep: 1, agingTokens: 100 });
    const next = () => {
      const [name] = scheduled(step());
      for (const request of [...important, ...plain]) if (request.name === name) scheduler.finish(request);
      return name![0];
    };
    const important = Array.from({ length: 30 }, (_, i) => add(`i${i}`, 10, { client: "i", priority: 0 }));
    const plain = Array.from({ length: 30 }, (_, i) => add(`p${i}`, 10, { client: "p", priority: 1 }));
    expect(Array.from({ length: 14 }, next).join("")).toBe("iiiiiiiiiiipip");
  });

  it("are charged what is computed: not for hits, not twice after a preemption", () => {
    const { scheduler, add, step } = make({ maxSequencesPerStep: 2 }, new TestBlocks(6, 4));
    const a = add("a", 8, { client: "a" });
    const b = add("b", 12, { client: "b" });
    step();
    const plan = step();
    expect(names(plan.preempted)).toEqual(["b"]);
    scheduler.finish(a);
    // b was charged its 12 tokens once, a its 8 and one generated for 2: at 10 it is next.
    expect(scheduled(step())).toEqual(["b"]);
    scheduler.finish(b);
    const order = [add("b1", 1, { client: "b" }), add("a1", 1, { client: "a" })];
    expect(names(order)).toEqual(["b1", "a1"]);
    expect(scheduled(step())).toEqual(["a1", "b1"]);
  });
});
