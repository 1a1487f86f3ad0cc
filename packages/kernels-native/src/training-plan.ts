import { addon, type Handle } from "./addon.js";
import { checkInstance, checkInteger, checkNumber, checkObject, invalid } from "./check.js";
import type { Jobs } from "./jobs.js";
import { Owner } from "./owner.js";

/** Sequences from position 0 on, and what should follow some of their rows. Its arrays are copied at the call. */
export interface TrainingBatch {
  /** The token of each row, grouped by sequence. */
  tokens: Int32Array;
  /** Rows of each sequence. */
  sequences: Int32Array;
  /** Rows that are trained on, ascending. */
  outputs: Int32Array;
  /** The token that should follow each of them. */
  targets: Int32Array;
  /** The weight of each in the loss: the sum of weight · -ln p(target). */
  weights: Float32Array;
}

/** A step of AdamW (Loshchilov and Hutter, 2019). */
export interface AdamWStep {
  /** From 1 on; it corrects moments that began at 0. */
  step: number;
  learningRate: number;
  beta1: number;
  beta2: number;
  epsilon: number;
  /** Taken off the parameters, times the learning rate. */
  weightDecay: number;
  /** Larger gradients are scaled to this norm; 0: none are. */
  maxGradientNorm: number;
}

const states = { parameters: 0, gradients: 1, firstMoments: 2, secondMoments: 3 } as const;

/** What is kept of each trained number. */
export type TrainingState = keyof typeof states;

/**
 * A frozen model, its low-rank adapters, and their optimizer; made by `Device.encodeTraining`. Calls run one after another,
 * in their order. The same batches give the same bits on any number of threads and every tier.
 */
export class TrainingPlan implements Disposable {
  /** Bytes of activations, parameters, gradients and moments. */
  readonly byteLength: number;
  /** Trained numbers: of every adapter in turn, A `[rank, in]` and B `[out, rank]`. */
  readonly parameterCount: number;
  readonly #device: Owner<Handle<"Device">>;
  readonly #jobs: Jobs;
  readonly #owner: Owner<Handle<"TrainingPlan">>;

  /** @internal */
  constructor(
    device: Owner<Handle<"Device">>,
    jobs: Jobs,
    native: { handle: Handle<"TrainingPlan">; byteLength: number; parameters: number },
  ) {
    this.#device = device;
    this.#jobs = jobs;
    this.#owner = new Owner("TrainingPlan", native.handle);
    this.byteLength = native.byteLength;
    this.parameterCount = native.parameters;
  }

  /**
   * Runs a batch forward and back, adds the gradients of its loss to those kept, and returns the loss. Rejects with
   * `invalid-argument`, `non-finite` (the loss is NaN or infinite), `cancelled`, `disposed`; to go on after one of the
   * middle two, write zeros to the gradients.
   */
  async accumulate(batch: TrainingBatch, options: { signal?: AbortSignal } = {}): Promise<number> {
    const plan = this.#owner.handle;
    const device = this.#device.handle;
    const { tokens, sequences, outputs, targets, weights } = checkObject("batch", batch);
    for (const [name, array] of Object.entries({ tokens, sequences, outputs, targets })) {
      checkInstance(`batch.${name}`, array, Int32Array);
    }
    checkInstance("batch.weights", weights, Float32Array);
    const { signal } = checkObject("options", options);
    if (signal !== undefined) checkInstance("options.signal", signal, AbortSignal);
    return await this.#jobs.start<number>(
      (callback) => addon().accumulateGradients(device, plan, tokens, sequences, outputs, targets, weights, callback),
      signal,
    );
  }

  /**
   * Takes a step of the optimizer and sets the gradients to 0. Returns their norm before it was clipped. Rejects with
   * `non-finite`, the parameters being as they were, and the gradients 0.
   */
  async update(step: AdamWStep): Promise<number> {
    const plan = this.#owner.handle;
    const device = this.#device.handle;
    const range = (name: keyof AdamWStep, allowed: string, test: (x: number) => boolean) =>
      checkNumber(`step.${name}`, step[name], allowed, test);
    const positive = (name: keyof AdamWStep) => range(name, "a number from 0 up", (x) => x >= 0 && x < Infinity);
    const share = (name: keyof AdamWStep) => range(name, "a number from 0 to under 1", (x) => x >= 0 && x < 1);
    const options = {
      step: checkInteger("step.step", checkObject("step", step).step, 1),
      learningRate: positive("learningRate"),
      beta1: share("beta1"),
      beta2: share("beta2"),
      epsilon: range("epsilon", "a positive number", (x) => x > 0 && x < Infinity),
      weightDecay: positive("weightDecay"),
      maxGradientNorm: positive("maxGradientNorm"),
    };
    return await this.#jobs.start<number>((callback) => addon().updateParameters(device, plan, options, callback));
  }

  /** A copy of what is kept, `parameterCount` numbers. */
  async read(state: TrainingState): Promise<Float32Array> {
    const plan = this.#owner.handle;
    const device = this.#device.handle;
    const id = checkState(state);
    return await this.#jobs.start<Float32Array>((callback) => addon().readTraining(device, plan, id, callback));
  }

  /** Replaces what is kept; the values are copied at the call. Everything is 0 at first. */
  async write(state: TrainingState, values: Float32Array): Promise<void> {
    const plan = this.#owner.handle;
    const device = this.#device.handle;
    const id = checkState(state);
    checkInstance("values", values, Float32Array);
    if (values.length !== this.parameterCount) {
      throw invalid("values", values, `the plan has ${this.parameterCount} parameters`);
    }
    await this.#jobs.start<number>((callback) => addon().writeTraining(device, plan, id, values, callback));
  }

  /** Frees the plan's memory and its shares of matrices, once the work in flight has ended. */
  dispose(): void {
    this.#owner.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

function checkState(state: TrainingState): number {
  if (!Object.hasOwn(states, state)) {
    throw invalid("state", state, `it must be one of ${Object.keys(states).join(", ")}`);
  }
  return states[state];
}
