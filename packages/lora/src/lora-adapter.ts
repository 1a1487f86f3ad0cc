import { type BaseShape, projectionWeights } from "./base-shape.js";
import { LoraError } from "./errors.js";
import { checkModule, type LoraConfig, type PlannedTarget, planTargets } from "./lora-config.js";
import { checkedTarget, type LoraTarget, matrixValues, type TargetWeights } from "./lora-target.js";
import { type FloatWeights, MergedWeights } from "./merge.js";
import { type LoraModule, tensorName } from "./modules.js";
import { multiply } from "./multiply.js";
import { randomNumbers } from "./random.js";

/**
 * A low-rank adapter (LoRA; Hu et al., 2021) of a base model: for some of its projections a pair A [rank, in] and
 * B [out, rank], so that y = W·x becomes W·x + scale · B·A·x. Iterates over its targets in the order of a forward pass.
 */
export class LoraAdapter implements Iterable<LoraTarget> {
  readonly config: LoraConfig;
  readonly shape: BaseShape;
  /** In the order of a forward pass. */
  readonly targets: readonly LoraTarget[];
  readonly #byTensor: ReadonlyMap<string, LoraTarget>;
  readonly #merged = new MergedWeights();

  private constructor(config: LoraConfig, shape: BaseShape, targets: readonly LoraTarget[]) {
    this.config = config;
    this.shape = shape;
    this.targets = targets;
    this.#byTensor = new Map(targets.map((target) => [target.tensor, target]));
  }

  /**
   * An adapter of given weights.
   *
   * @param weights is asked for every module that `config` adapts, in the order of a forward pass
   * @throws LoraError `bad-config`, `wrong-type`, `wrong-shape`, `not-finite` or `missing-tensor`
   */
  static from(config: LoraConfig, shape: BaseShape, weights: (planned: PlannedTarget) => TargetWeights): LoraAdapter {
    const targets = planTargets(config, shape).map((planned) =>
      checkedTarget(planned, weights(planned), config.useDora),
    );
    return new LoraAdapter(config, shape, targets);
  }

  /** {@link from} with weights that are read one after another; the event loop is free between them. */
  static async fromAsync(
    config: LoraConfig,
    shape: BaseShape,
    weights: (planned: PlannedTarget) => Promise<TargetWeights>,
  ): Promise<LoraAdapter> {
    const targets: LoraTarget[] = [];
    for (const planned of planTargets(config, shape)) {
      targets.push(checkedTarget(planned, await weights(planned), config.useDora));
    }
    return new LoraAdapter(config, shape, targets);
  }

  /**
   * A new adapter that changes nothing yet: A uniform in ±1/√in (PEFT's Kaiming-uniform start with a = √5), B zero, float32.
   *
   * @param seed the same seed gives the same bits
   * @throws LoraError `bad-config`; `needs-weights` for DoRA, whose magnitudes start as the lengths of the base's rows
   */
  static create(config: LoraConfig, shape: BaseShape, seed: number): LoraAdapter {
    if (config.useDora) {
      throw new LoraError(
        "needs-weights",
        "a new DoRA needs the lengths of the base's rows as magnitudes; pass them with LoraAdapter.from",
      );
    }
    const random = randomNumbers(seed);
    return LoraAdapter.from(config, shape, ({ rank, inputs, outputs }) => {
      const bound = 1 / Math.sqrt(inputs);
      const a = Float32Array.from({ length: rank * inputs }, () => (2 * random() - 1) * bound);
      return { a, b: new Float32Array(outputs * rank) };
    });
  }

  [Symbol.iterator](): Iterator<LoraTarget> {
    return this.targets[Symbol.iterator]();
  }

  /** What it does to a module, or undefined. */
  target(layer: number, module: LoraModule): LoraTarget | undefined {
    checkModule(module);
    return this.#byTensor.get(tensorName({ layer, module }));
  }

  /** Values in all A, B and magnitudes. */
  get parameterCount(): number {
    return this.targets.reduce(
      (sum, { rank, inputs, outputs, magnitude }) => sum + rank * (inputs + outputs) + (magnitude?.length ?? 0),
      0,
    );
  }

  /** Bytes that it takes in memory, in the types of its file. */
  get byteLength(): number {
    return this.targets.reduce(
      (sum, { a, b, magnitude }) => sum + a.data.byteLength + b.data.byteLength + (magnitude?.byteLength ?? 0),
      0,
    );
  }

  /** Parameters per weight of the base's projections: 0.01 for an adapter of a hundredth of their number. */
  get efficiencyRatio(): number {
    return this.parameterCount / projectionWeights(this.shape);
  }

  /**
   * What the adapter adds to a module's output: scale · B·A·x, summed in float64; zeros for a module that it leaves alone.
   *
   * @param x [rows, in]
   * @returns [rows, out]
   * @throws LoraError `invalid-argument`; `needs-weights` for DoRA, where it depends on the base's weights: merge instead
   */
  apply(x: Float32Array, layer: number, module: LoraModule): Float32Array {
    checkModule(module);
    const [inputs, outputs] = this.shape.modules[module];
    const rows = x.length / inputs;
    if (!Number.isInteger(rows)) {
      throw new LoraError("invalid-argument", `x has ${x.length} values; ${module} takes rows of ${inputs}`, {
        value: x.length,
      });
    }
    const target = this.target(layer, module);
    if (target === undefined) return new Float32Array(rows * outputs);
    if (target.magnitude !== undefined) {
      throw new LoraError(
        "needs-weights",
        `${target.tensor}: what a DoRA adds depends on the base's weights; merge it into a copy of them`,
        { tensor: target.tensor },
      );
    }
    const hidden = multiply(x, matrixValues(target.a), inputs);
    const y = multiply(hidden, matrixValues(target.b), target.rank);
    return Float32Array.from(y, (value) => value * target.scale);
  }

  /**
   * Adds scale · B·A to float weights [out, in] of a module in place; a DoRA also brings their rows to its magnitudes. A
   * module that the adapter leaves alone stays as it is.
   *
   * @throws LoraError `quantized-weights` for anything but floats, `invalid-argument` for another size, `merge-state` if
   *   these weights hold the adapter already
   */
  mergeInto(weights: FloatWeights, layer: number, module: LoraModule): void {
    const [inputs, outputs] = this.#dims(module);
    this.#merged.merge(weights, this.target(layer, module), tensorName({ layer, module }), inputs * outputs);
  }

  /**
   * Takes out what {@link mergeInto} added to these same weights: they are what they were but for rounding.
   *
   * @throws LoraError `merge-state` if they do not hold the adapter
   */
  unmerge(weights: FloatWeights, layer: number, module: LoraModule): void {
    checkModule(module);
    this.#merged.unmerge(weights, tensorName({ layer, module }));
  }

  #dims(module: LoraModule): readonly [number, number] {
    checkModule(module);
    return this.shape.modules[module];
  }
}
