import type { StepRecord } from "@niwaki/qwen3-model";

interface TraceEvent {
  name: string;
  ph: "X" | "C" | "M";
  pid: 1;
  tid: number;
  /** Microseconds. */
  ts: number;
  dur?: number;
  args?: Record<string, unknown>;
}

/** The track of the engine; a request's is its number. */
const ENGINE = 0;

/**
 * Steps as a timeline in Chrome's trace event format, which chrome://tracing and Perfetto open: one track for the engine,
 * one for each request, and counters.
 */
export function timeline(steps: readonly StepRecord[], requestNames: readonly string[]): { traceEvents: TraceEvent[] } {
  const origin = steps[0]?.begun ?? 0;
  const micros = (time: number) => Math.round((time - origin) * 1000);
  const events: TraceEvent[] = [];
  const name = (tid: number, name: string) =>
    events.push({ name: "thread_name", ph: "M", pid: 1, tid, ts: 0, args: { name } });
  const slice = (tid: number, name: string, from: number, to: number, args?: Record<string, unknown>) =>
    events.push({
      name,
      ph: "X",
      pid: 1,
      tid,
      ts: micros(from),
      dur: micros(to) - micros(from),
      ...(args && { args }),
    });
  const counter = (name: string, time: number, value: number) =>
    events.push({ name, ph: "C", pid: 1, tid: ENGINE, ts: micros(time), args: { [name]: value } });

  name(ENGINE, "engine");
  for (const [i, text] of requestNames.entries()) name(i + 1, text);
  for (const step of steps) {
    slice(ENGINE, "plan", step.begun, step.planned, { step: step.number });
    const what = step.steps === 1 ? `step of ${step.rows}` : `${step.steps} steps of ${step.rows}`;
    slice(ENGINE, what, step.started, step.ended, { step: step.number, steps: step.steps, rows: step.rows });
    slice(ENGINE, "deliver", step.ended, step.delivered, { step: step.number });
    for (const { request, start, end: firstEnd, sample } of step.chunks) {
      const end = firstEnd + step.steps - 1;
      const what = firstEnd - start === 1 && sample ? "decode" : `prefill ${start}–${end}`;
      slice(request, what, step.started, step.ended, { step: step.number, start, end });
    }
    for (const request of step.preempted) slice(request, "preempted", step.begun, step.planned, { step: step.number });
    counter("rows", step.started, step.rows);
    counter("free blocks", step.started, step.freeBlocks);
    counter("waiting", step.started, step.waiting);
  }
  return { traceEvents: events };
}
