import { addon, type Handle } from "./addon.js";
import { checkInstance, checkNumber, checkObject } from "./check.js";
import type { PlanLimits } from "./encoder.js";
import type { Jobs } from "./jobs.js";
import { Owner } from "./owner.js";
import type { SampleResult, Step, StepResult } from "./step.js";
import { flattenStep, readSamples } from "./step-layout.js";

export interface RunOptions {
  /** Aborted: the step is cancelled, which is looked at between operations. */
  signal?: AbortSignal;
  /** Aborted: no step follows the one that runs (`Step.following`). */
  enough?: AbortSignal;
  /**
   * Gets samples while steps that follow run; the result has only those that it did not get, and always those of the last
   * step. `started` is that of the result. When it throws it is not called again, and the run rejects with that in the end.
   */
  onSamples?: (samples: SampleResult[], started: number) => void;
  /** `onSamples` is called before another step would make what it gets the samples of more milliseconds; 0 unless given. */
  samplesWithin?: number;
}

/** The operations of a forward step, with their memory; made by `Device.encode`. */
export class Plan implements Disposable {
  /** Bytes of activations and scratch. */
  readonly byteLength: number;
  readonly #limits: PlanLimits;
  readonly #device: Owner<Handle<"Device">>;
  readonly #jobs: Jobs;
  readonly #owner: Owner<Handle<"Plan">>;

  /** @internal */
  constructor(
    limits: PlanLimits,
    device: Owner<Handle<"Device">>,
    jobs: Jobs,
    native: { handle: Handle<"Plan">; byteLength: number },
  ) {
    this.#limits = limits;
    this.#device = device;
    this.#jobs = jobs;
    this.#owner = new Owner("Plan", native.handle);
    this.byteLength = native.byteLength;
  }

  /**
   * Runs a step on the threads of the device; runs go one after another, in the order of the calls. The arrays of the step
   * are copied at the call. Rejects with a KernelError: `invalid-argument`, `non-finite` (activations that are NaN or
   * infinite: the message names the label of the operation), `cancelled` (the signal was aborted), `disposed`.
   */
  async run(step: Step, options: RunOptions = {}): Promise<StepResult> {
    const plan = this.#owner.handle;
    const device = this.#device.handle;
    const { signal, enough, onSamples, samplesWithin = 0 } = checkObject("options", options);
    if (signal !== undefined) checkInstance("options.signal", signal, AbortSignal);
    if (enough !== undefined) checkInstance("options.enough", enough, AbortSignal);
    if (onSamples !== undefined) checkInstance("options.onSamples", onSamples, Function);
    checkNumber("options.samplesWithin", samplesWithin, "at least 0", (x) => x >= 0);
    const flat = flattenStep(step, this.#limits);
    const { tokens, sequences, outputs, samples, adapters, adapterSlots, logits } = flat;
    const following = enough?.aborted ? 0 : flat.following;
    const submitted = performance.now();
    let failure: { error: unknown } | undefined;
    const early = ([early, waited]: [samples: Float64Array, waited: number]) => {
      if (failure !== undefined) return;
      try {
        onSamples!(readSamples(early), submitted + waited);
      } catch (error) {
        failure = { error };
      }
    };
    const result = await this.#jobs.start<[samples: Float64Array, logits: Float32Array | null, waited: number]>(
      (callback) =>
        addon().runPlan(
          device,
          plan,
          tokens,
          sequences,
          outputs,
          samples,
          adapters,
          adapterSlots,
          logits,
          following,
          samplesWithin,
          onSamples === undefined || following === 0 ? null : early,
          callback,
        ),
      signal,
      enough,
    );
    if (failure !== undefined) throw failure.error;
    return { samples: readSamples(result[0]), logits: result[1], started: submitted + result[2] };
  }

  /** @internal */
  get handle(): Handle<"Plan"> {
    return this.#owner.handle;
  }

  /** Frees the plan's memory and its shares of matrices and caches, once the runs in flight have ended. */
  dispose(): void {
    this.#owner.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
