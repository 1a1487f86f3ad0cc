import { Buffer } from "./buffer.js";
import { checkInstance, checkInteger, checkMultiple, checkNumber, checkObject, checkString, invalid } from "./check.js";
import { KernelError } from "./error.js";
import { Matrix } from "./matrix.js";
import { checkRope, type RopeOptions } from "./rope.js";
import { Vector } from "./vector.js";

/** The sizes that a training plan's memory is made for. */
export interface TrainingLimits {
  /** Rows (tokens) of a batch. */
  maxRows: number;
  /** Rows of a batch that are trained on, at most `maxRows`. */
  maxOutputs: number;
  /** Rows of one sequence, at most `maxRows`. */
  maxSequence: number;
  /** Tokens are `0 … vocabulary - 1`; the logits buffer is this wide. */
  vocabulary: number;
  rope: RopeOptions;
}

/** A low-rank addition to one of the tensors that are stacked in a matrix: y += scale · B (A x). */
export interface TrainingAdapter {
  /** Which tensor of the stack, from 0. */
  part: number;
  /** 1 to 1,024. */
  rank: number;
  scale: number;
}

/** Heads of Q | K | V. */
export interface TrainingHeads {
  /** A multiple of `kvHeads`. */
  heads: number;
  kvHeads: number;
}

/**
 * Writes down the forward pass of a model over whole sequences; `Device.encodeTraining` makes one and compiles what was
 * written, with its gradients. Each operation returns a new buffer, whose values are kept until the way back. Widths are
 * multiples of 16.
 */
export class TrainingEncoder {
  readonly #limits: Omit<TrainingLimits, "rope"> & { rope: ReturnType<typeof checkRope> };
  readonly #buffers: { width: number; perOutput: boolean }[] = [];
  readonly #ops: object[] = [];
  #label = "";
  #done = false;

  /** @internal */
  constructor(limits: TrainingLimits) {
    const maxRows = checkInteger("limits.maxRows", limits.maxRows, 1);
    this.#limits = {
      maxRows,
      maxOutputs: checkInteger("limits.maxOutputs", limits.maxOutputs, 1, maxRows),
      maxSequence: checkInteger("limits.maxSequence", limits.maxSequence, 1, maxRows),
      vocabulary: checkInteger("limits.vocabulary", limits.vocabulary, 1),
      rope: checkRope(limits.rope),
    };
  }

  /** Names the operations that follow, for errors: `blk.3`. */
  label(name: string): void {
    this.#label = checkString("name", name);
  }

  /** table[token of the row]. */
  embed(table: Matrix): Buffer {
    checkInstance("table", table, Matrix);
    if (table.rows < this.#limits.vocabulary) {
      throw invalid("table.rows", table.rows, `it must have a row for each of ${this.#limits.vocabulary} tokens`);
    }
    return this.#add("embed", { table: table.handle }, table.columns, false);
  }

  /** input / sqrt(mean(input²) + eps) · weight (Zhang and Sennrich, 2019). */
  rmsNorm(input: Buffer, weight: Vector, eps: number): Buffer {
    checkInstance("weight", weight, Vector);
    this.#check("input", input, weight.length);
    const fields = { input: input.id, weight: weight.handle, eps: checkEps(eps) };
    return this.#add("rmsNorm", fields, weight.length, input.perOutput);
  }

  /** matrix · input, plus its adapters (Hu et al., 2021), plus the residual. The matrix is frozen. */
  linear(
    input: Buffer,
    matrix: Matrix,
    options: { adapters?: readonly TrainingAdapter[]; residual?: Buffer } = {},
  ): Buffer {
    checkInstance("matrix", matrix, Matrix);
    this.#check("input", input, matrix.columns);
    const { adapters = [], residual } = checkObject("options", options);
    if (residual !== undefined) {
      this.#check("residual", residual, matrix.rows);
      if (residual.perOutput !== input.perOutput)
        throw invalid("residual", residual, "it must have the rows of the input");
    }
    const fields = {
      input: input.id,
      matrix: matrix.handle,
      residual: residual?.id ?? -1,
      adapters: adapters.map(({ part, rank, scale }, i) => ({
        part: checkInteger(`options.adapters[${i}].part`, part, 0),
        rank: checkInteger(`options.adapters[${i}].rank`, rank, 1, 1024),
        scale: checkNumber(`options.adapters[${i}].scale`, scale, "a finite number", Number.isFinite),
      })),
    };
    return this.#add("linear", fields, matrix.rows, input.perOutput);
  }

  /** Q | K after RMSNorm of each head over its dimensions, and RoPE. */
  normRope(qkv: Buffer, heads: TrainingHeads, qNorm: Vector, kNorm: Vector, eps: number): Buffer {
    const layout = this.#heads(heads);
    this.#check("qkv", qkv, (layout.heads + 2 * layout.kvHeads) * layout.headDim);
    for (const [name, norm] of Object.entries({ qNorm, kNorm })) {
      checkInstance(name, norm, Vector);
      if (norm.length !== layout.headDim) throw invalid(`${name}.length`, norm.length, `headDim is ${layout.headDim}`);
    }
    const fields = { ...layout, qkv: qkv.id, qNorm: qNorm.handle, kNorm: kNorm.handle, eps: checkEps(eps) };
    return this.#add("normRope", fields, (layout.heads + layout.kvHeads) * layout.headDim, false);
  }

  /** Causal attention within each sequence, with grouped queries: Q and K are those of `normRope`, V that of `qkv`. */
  causalAttention(qk: Buffer, qkv: Buffer, heads: TrainingHeads): Buffer {
    const layout = this.#heads(heads);
    this.#check("qk", qk, (layout.heads + layout.kvHeads) * layout.headDim);
    this.#check("qkv", qkv, (layout.heads + 2 * layout.kvHeads) * layout.headDim);
    return this.#add("causalAttention", { ...layout, qk: qk.id, qkv: qkv.id }, layout.heads * layout.headDim, false);
  }

  /** silu(gate) · up of gate | up, half as wide (Shazeer, 2020). */
  swiglu(gateUp: Buffer): Buffer {
    this.#check("gateUp", gateUp);
    checkMultiple("gateUp.width", gateUp.width, 2);
    return this.#add("swiglu", { input: gateUp.id }, gateUp.width / 2, gateUp.perOutput);
  }

  /** The rows that are trained on. */
  selectOutputs(input: Buffer): Buffer {
    this.#check("input", input);
    if (input.perOutput) throw invalid("input", input, "it must have all rows");
    return this.#add("selectOutputs", { input: input.id }, input.width, true);
  }

  /** @internal Ends the encoding; `logits` is what the loss is of. */
  finish(logits: Buffer) {
    this.#check("logits", logits, this.#limits.vocabulary);
    if (!logits.perOutput) throw invalid("logits", logits, "it must have the output rows: see selectOutputs");
    this.#done = true;
    return { ...this.#limits, buffers: this.#buffers, ops: this.#ops, logits: logits.id };
  }

  #add(op: string, fields: object, width: number, perOutput: boolean): Buffer {
    if (this.#done) {
      throw new KernelError("invalid-argument", `${op}: the plan of this encoder is compiled and cannot be changed`);
    }
    const out = this.#buffers.length;
    this.#buffers.push({ width, perOutput });
    this.#ops.push({ op, label: this.#label, out, ...fields });
    return new Buffer(this, out, width, perOutput);
  }

  #check(argument: string, buffer: Buffer, width?: number): void {
    checkInstance(argument, buffer, Buffer);
    if (buffer.encoder !== this) throw invalid(argument, buffer, "it must be a buffer of this encoder");
    if (width !== undefined && buffer.width !== width) {
      throw invalid(`${argument}.width`, buffer.width, `it must be ${width} here`);
    }
  }

  #heads({ heads, kvHeads }: TrainingHeads) {
    checkInteger("heads.kvHeads", kvHeads, 1);
    checkMultiple("heads.heads", heads, kvHeads);
    return { heads, kvHeads, headDim: this.#limits.rope.headDim };
  }
}

function checkEps(eps: number): number {
  return checkNumber("eps", eps, "a number from 0 to 1", (x) => x >= 0 && x <= 1);
}
