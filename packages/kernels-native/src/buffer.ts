/** Activations of a plan, float32: `[rows of the step, width]`, or `[output rows of the step, width]`. */
export class Buffer {
  readonly width: number;
  readonly perOutput: boolean;
  /** @internal The encoder that made it. */
  readonly encoder: object;
  /** @internal */
  readonly id: number;

  /** @internal */
  constructor(encoder: object, id: number, width: number, perOutput: boolean) {
    this.encoder = encoder;
    this.id = id;
    this.width = width;
    this.perOutput = perOutput;
  }
}

/** Q | K | V of each row: `heads * headDim`, then `kvHeads * headDim` twice. */
export class QkvBuffer extends Buffer {
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;

  /** @internal */
  constructor(encoder: object, id: number, heads: number, kvHeads: number, headDim: number) {
    super(encoder, id, (heads + 2 * kvHeads) * headDim, false);
    this.heads = heads;
    this.kvHeads = kvHeads;
    this.headDim = headDim;
  }
}
