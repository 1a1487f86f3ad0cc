import { Buffer, QkvBuffer } from "./buffer.js";
import { checkInstance, checkInteger, checkMultiple, checkNumber, checkString, invalid } from "./check.js";
import { KernelError } from "./error.js";
import { KvLayer } from "./kv-cache.js";
import { Matrix } from "./matrix.js";
import { checkRope, type RopeOptions } from "./rope.js";
import { Vector } from "./vector.js";

/** The sizes that a plan's memory is made for. */
export interface PlanLimits {
  /** Rows of a step. */
  maxRows: number;
  /** Rows of a step that need logits, at most `maxRows`. */
  maxOutputs: number;
  /** Tokens are `0 … vocabulary - 1`; the logits buffer is this wide. */
  vocabulary: number;
  /** Tokens in a block of the KV cache; a multiple of 16. */
  blockSize: number;
}

/**
 * Writes down the operations of one forward step, in order; `Device.encode` makes one and compiles what was written. Every
 * operation works on whole buffers, each row alone. Wrong shapes throw `invalid-argument` here.
 */
export class Encoder {
  readonly #limits: Readonly<PlanLimits>;
  readonly #buffers: { width: number; perOutput: boolean }[] = [];
  readonly #ops: object[] = [];
  readonly #ropeTables = new Set<Buffer>();
  #label = "";
  #done = false;

  /** @internal */
  constructor(limits: PlanLimits) {
    const maxRows = checkInteger("limits.maxRows", limits.maxRows, 1);
    this.#limits = {
      maxRows,
      maxOutputs: checkInteger("limits.maxOutputs", limits.maxOutputs, 1, maxRows),
      vocabulary: checkInteger("limits.vocabulary", limits.vocabulary, 1),
      blockSize: checkMultiple("limits.blockSize", limits.blockSize, 16),
    };
  }

  /** Names the operations that follow, for errors: `blk.3`. */
  label(name: string): void {
    this.#label = checkString("name", name);
  }

  /** Activations `[rows, width]`. */
  buffer(width: number): Buffer {
    return this.#addBuffer(checkInteger("width", width, 1), false);
  }

  /** Activations `[output rows, width]`. */
  outputBuffer(width: number): Buffer {
    return this.#addBuffer(checkInteger("width", width, 1), true);
  }

  /** Q | K | V of each row. `heads` is a multiple of `kvHeads`, `headDim` of 16. */
  qkvBuffer(heads: number, kvHeads: number, headDim: number): QkvBuffer {
    checkInteger("kvHeads", kvHeads, 1);
    checkMultiple("heads", heads, kvHeads);
    checkMultiple("headDim", headDim, 16);
    const id = this.#buffers.length;
    const qkv = new QkvBuffer(this, id, heads, kvHeads, headDim);
    this.#buffers.push({ width: checkInteger("width", qkv.width, 1), perOutput: false });
    return qkv;
  }

  /** out = table[token of the row]. */
  embed(table: Matrix, out: Buffer): void {
    checkInstance("table", table, Matrix);
    if (table.rows < this.#limits.vocabulary) {
      throw invalid("table.rows", table.rows, `it must have a row for each of ${this.#limits.vocabulary} tokens`);
    }
    this.#check("out", out, { width: table.columns, perOutput: false });
    this.#add("embed", { table: table.handle, out: out.id });
  }

  /** cos | sin of each row's position, computed once a step. */
  ropeTable(rope: RopeOptions): Buffer {
    const spec = checkRope(rope);
    const out = this.#addBuffer(spec.headDim, false);
    this.#ropeTables.add(out);
    this.#add("ropeTable", { rope: spec, out: out.id });
    return out;
  }

  /** out = input / sqrt(mean(input²) + eps) · weight (Zhang and Sennrich, 2019). */
  rmsNorm(input: Buffer, weight: Vector, out: Buffer, eps: number): void {
    checkInstance("weight", weight, Vector);
    this.#check("input", input, { width: weight.length });
    this.#check("out", out, { width: weight.length, perOutput: input.perOutput });
    this.#add("rmsNorm", { input: input.id, weight: weight.handle, out: out.id, eps: checkEps(eps) });
  }

  /**
   * out = matrix · input, or out += matrix · input with `accumulate`. With `activation: "swiglu"` the matrix is gate over
   * up, of equal rows, and out = silu(gate) · up, half as wide (Shazeer, 2020); it cannot be accumulated.
   */
  linear(
    input: Buffer,
    matrix: Matrix,
    out: Buffer,
    options: { accumulate?: boolean; activation?: "swiglu" } = {},
  ): void {
    checkInstance("matrix", matrix, Matrix);
    const { accumulate = false, activation } = options;
    if (typeof accumulate !== "boolean") throw invalid("options.accumulate", accumulate, "it must be a boolean");
    if (activation !== undefined && activation !== "swiglu") {
      throw invalid("options.activation", activation, 'it must be "swiglu" or left out');
    }
    const swiglu = activation === "swiglu";
    if (swiglu && accumulate) throw invalid("options.accumulate", accumulate, "swiglu cannot be accumulated");
    if (swiglu && matrix.rows % 2 !== 0) throw invalid("matrix.rows", matrix.rows, "gate and up have equal rows");
    this.#check("input", input, { width: matrix.columns });
    this.#check("out", out, { width: swiglu ? matrix.rows / 2 : matrix.rows, perOutput: input.perOutput });
    if (input.id === out.id) throw invalid("out", out, "it must be another buffer than the input");
    this.#add("linear", { input: input.id, matrix: matrix.handle, out: out.id, accumulate, swiglu });
  }

  /** RMSNorm of every query head and key head over its `headDim`, then RoPE, in place. */
  qkNormRope(qkv: QkvBuffer, qNorm: Vector, kNorm: Vector, rope: Buffer, eps: number): void {
    const layout = this.#checkQkv(qkv);
    for (const [name, norm] of Object.entries({ qNorm, kNorm })) {
      checkInstance(name, norm, Vector);
      if (norm.length !== qkv.headDim) throw invalid(`${name}.length`, norm.length, `headDim is ${qkv.headDim}`);
    }
    this.#check("rope", rope, { width: qkv.headDim });
    if (!this.#ropeTables.has(rope)) throw invalid("rope", rope, "it must be a buffer that ropeTable() returned");
    this.#add("qkNormRope", {
      ...layout,
      qNorm: qNorm.handle,
      kNorm: kNorm.handle,
      rope: rope.id,
      eps: checkEps(eps),
    });
  }

  /** The K and V of each row into the pages of its sequence. */
  kvStore(qkv: QkvBuffer, kv: KvLayer): void {
    this.#add("kvStore", { ...this.#checkQkv(qkv), ...this.#checkKv(kv, qkv) });
  }

  /** Causal attention with grouped queries, scale 1/√headDim, over the pages; out is `[rows, heads * headDim]`. */
  pagedAttention(qkv: QkvBuffer, kv: KvLayer, out: Buffer): void {
    const layout = this.#checkQkv(qkv);
    const pages = this.#checkKv(kv, qkv);
    this.#check("out", out, { width: qkv.heads * qkv.headDim, perOutput: false });
    this.#add("pagedAttention", { ...layout, ...pages, out: out.id });
  }

  /** out[i] = input[output row i of the step]. */
  selectOutputs(input: Buffer, out: Buffer): void {
    this.#check("input", input, { perOutput: false });
    this.#check("out", out, { width: input.width, perOutput: true });
    this.#add("selectOutputs", { input: input.id, out: out.id });
  }

  /** @internal Ends the encoding; `logits` is what steps sample from. */
  finish(logits: Buffer) {
    this.#check("logits", logits, { width: this.#limits.vocabulary, perOutput: true });
    this.#done = true;
    return { ...this.#limits, buffers: this.#buffers, ops: this.#ops, logits: logits.id };
  }

  #add(op: string, fields: object): void {
    if (this.#done) {
      throw new KernelError("invalid-argument", `${op}: the plan of this encoder is compiled and cannot be changed`);
    }
    this.#ops.push({ op, label: this.#label, ...fields });
  }

  #addBuffer(width: number, perOutput: boolean): Buffer {
    this.#buffers.push({ width, perOutput });
    return new Buffer(this, this.#buffers.length - 1, width, perOutput);
  }

  #check(argument: string, buffer: Buffer, expected: { width?: number; perOutput?: boolean }): void {
    checkInstance(argument, buffer, Buffer);
    if (buffer.encoder !== this) throw invalid(argument, buffer, "it must be a buffer of this encoder");
    if (expected.width !== undefined && buffer.width !== expected.width) {
      throw invalid(`${argument}.width`, buffer.width, `it must be ${expected.width} here`);
    }
    if (expected.perOutput !== undefined && buffer.perOutput !== expected.perOutput) {
      const rows = (perOutput: boolean) => (perOutput ? "the output rows" : "all rows");
      throw invalid(argument, buffer, `it has ${rows(buffer.perOutput)} and must have ${rows(expected.perOutput)}`);
    }
  }

  #checkQkv(qkv: QkvBuffer) {
    checkInstance("qkv", qkv, QkvBuffer);
    this.#check("qkv", qkv, {});
    return { qkv: qkv.id, heads: qkv.heads, kvHeads: qkv.kvHeads, headDim: qkv.headDim };
  }

  #checkKv(kv: KvLayer, qkv: QkvBuffer) {
    const { shape, handle } = checkInstance("kv", kv, KvLayer).cache;
    const same = (name: string, value: number, expected: number) => {
      if (value !== expected) throw invalid(`kv.cache.shape.${name}`, value, `it must be ${expected} here`);
    };
    same("kvHeads", shape.kvHeads, qkv.kvHeads);
    same("headDim", shape.headDim, qkv.headDim);
    same("blockSize", shape.blockSize, this.#limits.blockSize);
    return { kv: handle, layer: kv.index };
  }
}

function checkEps(eps: number): number {
  return checkNumber("eps", eps, "a number from 0 to 1", (x) => x >= 0 && x <= 1);
}
