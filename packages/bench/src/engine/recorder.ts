import type { StepRecord } from "@niwaki/qwen3-model";
import type { StepsReport } from "./job.js";
import { quantiles } from "./quantiles.js";

/** Keeps the steps of an engine and tells what went on around the kernels. */
export class StepRecorder {
  readonly #steps: StepRecord[] = [];

  readonly onStep = (step: StepRecord): void => {
    this.#steps.push(step);
  };

  get length(): number {
    return this.#steps.length;
  }

  clear(): void {
    this.#steps.length = 0;
  }

  /** Of the steps that are one row each of `requests` requests and follow another such step. */
  report(requests: number): StepsReport {
    const decodes = (step: StepRecord | undefined) =>
      step !== undefined && step.rows === requests && step.chunks.length === requests;
    const kernel: number[] = [];
    const overhead: number[] = [];
    const between: number[] = [];
    for (const [index, step] of this.#steps.entries()) {
      const before = this.#steps[index - 1];
      if (before === undefined || !decodes(before) || !decodes(step)) continue;
      kernel.push((step.ended - step.started) / step.steps);
      overhead.push((step.planned - step.begun + (step.delivered - step.ended)) / step.steps);
      between.push(step.started - before.ended);
    }
    return {
      steps: kernel.length,
      kernel: quantiles(kernel),
      overhead: quantiles(overhead),
      between: quantiles(between),
    };
  }
}
