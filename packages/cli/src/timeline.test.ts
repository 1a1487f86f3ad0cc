import type { StepRecord } from "@niwaki/qwen3-model";
import { expect, it } from "vitest";
import { timeline } from "./timeline.js";

it("has a slice of each request in each step, in microseconds from the first", () => {
  const step = (number: number, begun: number, chunks: StepRecord["chunks"], steps = 1): StepRecord => ({
    number,
    steps,
    begun,
    planned: begun + 0.5,
    started: begun + 1,
    ended: begun + 5,
    delivered: begun + 5.5,
    rows: chunks.reduce((sum, { start, end }) => sum + end - start, 0),
    chunks,
    preempted: number === 2 ? [2] : [],
    waiting: 0,
    freeBlocks: 9,
  });
  const { traceEvents } = timeline(
    [
      step(1, 100, [{ request: 1, start: 0, end: 7, sample: true }]),
      step(2, 106, [{ request: 1, start: 7, end: 8, sample: true }], 3),
    ],
    ["a", "b"],
  );
  const slices = traceEvents.filter(({ ph }) => ph === "X");
  expect(slices.filter(({ tid }) => tid === 1)).toEqual([
    { name: "prefill 0–7", ph: "X", pid: 1, tid: 1, ts: 1000, dur: 4000, args: { step: 1, start: 0, end: 7 } },
    { name: "decode", ph: "X", pid: 1, tid: 1, ts: 7000, dur: 4000, args: { step: 2, start: 7, end: 10 } },
  ]);
  expect(slices.filter(({ tid }) => tid === 2).map(({ name }) => name)).toEqual(["preempted"]);
  expect(slices.filter(({ tid }) => tid === 0).map(({ name, ts, dur }) => [name, ts, dur])).toEqual([
    ["plan", 0, 500],
    ["step of 7", 1000, 4000],
    ["deliver", 5000, 500],
    ["plan", 6000, 500],
    ["3 steps of 1", 7000, 4000],
    ["deliver", 11000, 500],
  ]);
  expect(traceEvents.filter(({ ph }) => ph === "M").map(({ args }) => args?.name)).toEqual(["engine", "a", "b"]);
});
