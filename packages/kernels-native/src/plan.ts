import { addon, type Handle } from "./addon.js";
import { checkInstance, checkObject } from "./check.js";
import type { PlanLimits } from "./encoder.js";
import type { Jobs } from "./jobs.js";
import { Owner } from "./owner.js";
import type { Step, StepResult } from "./step.js";
import { flattenStep, readSamples } from "./step-layout.js";

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
   * infinite: the message names the label of the operation), `cancelled` (the signal was aborted, which is looked at
   * between operations), `disposed`. When `enough` is aborted, no step follows the one that runs (`Step.following`).
   */
  async run(step: Step, options: { signal?: AbortSignal; enough?: AbortSignal } = {}): Promise<StepResult> {
    const plan = this.#owner.handle;
    const device = this.#device.handle;
    const { signal, enough } = checkObject("options", options);
    if (signal !== undefined) checkInstance("options.signal", signal, AbortSignal);
    if (enough !== undefined) checkInstance("options.enough", enough, AbortSignal);
    const flat = flattenStep(step, this.#limits);
    const { tokens, sequences, outputs, samples, adapters, adapterSlots, logits } = flat;
    const following = enough?.aborted ? 0 : flat.following;
    const submitted = performance.now();
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
          callback,
        ),
      signal,
      enough,
    );
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
