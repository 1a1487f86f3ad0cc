/** What a step takes, in milliseconds: `fixed + perToken * rows + perContextToken * attended`. None is negative. */
export interface StepCost {
  readonly fixed: number;
  /** For each row (token) of the step. */
  readonly perToken: number;
  /** For each pair of a row and a token that it attends to, itself included. */
  readonly perContextToken: number;
}

/** Tokens that the rows `start` to `end - 1` of a sequence attend to: row i attends to the i + 1 tokens up to it. */
export function attendedTokens(start: number, end: number): number {
  return ((end - start) * (start + end + 1)) / 2;
}

/** Milliseconds of a step. */
export function stepMilliseconds(cost: StepCost, rows: number, attended: number): number {
  return cost.fixed + cost.perToken * rows + cost.perContextToken * attended;
}

const TERMS = 3;
/** What is left of a measurement's weight after one more of its size. */
const MEMORY = 0.9;
/** Measurements before one can be told from an outlier. */
const WARM_UP = 8;
/** Relative errors up to this are never outliers. */
const USUAL = 0.5;
/** So many outliers in a row are no outliers. */
const CHANGE = 4;
/** The share of an error, as a logarithm, that is taken for a change of the whole machine. */
const DRIFT = 0.2;
/** Relative; keeps the equations solvable while all steps are alike. */
const RIDGE = 1e-6;
const LEAST_MILLISECONDS = 1e-3;
const LEAST_ERROR = 0.02;
/** Rows that may be tried before anything was measured. */
const FIRST_ROWS = 16;
const SIZES = 32;

/** Weighted sums over the measured steps of one size: the normal equations of their least squares. */
class Size {
  readonly matrix = new Float64Array(TERMS * TERMS);
  readonly right = new Float64Array(TERMS);

  add(rows: number, attended: number, milliseconds: number): void {
    // Divided by the time, so that the errors are relative.
    const terms = [1 / milliseconds, rows / milliseconds, attended / milliseconds];
    for (let i = 0; i < TERMS; i++) {
      this.right[i] = this.right[i]! * MEMORY + terms[i]!;
      for (let j = 0; j < TERMS; j++) {
        this.matrix[i * TERMS + j] = this.matrix[i * TERMS + j]! * MEMORY + terms[i]! * terms[j]!;
      }
    }
  }

  /** As if every step had taken `factor` times as long. */
  scale(factor: number): void {
    for (let i = 0; i < this.right.length; i++) this.right[i] = this.right[i]! / factor;
    for (let i = 0; i < this.matrix.length; i++) this.matrix[i] = this.matrix[i]! / factor ** 2;
  }
}

/**
 * Learns what a step costs while steps run: recursive least squares with exponential forgetting, in information form.
 *
 * - Errors are relative, so that steps of one row count as much as steps of a thousand.
 * - Forgetting is by size (powers of two of the rows): an hour of decode steps does not wash out what a prompt's chunk
 *   costs.
 * - Coefficients are never negative: the best of the seven subsets of terms whose solution is not.
 * - A step that took far longer than predicted counts only in part (Huber): other work on the machine gets in between.
 *   Several of them in a row are a machine that has changed, and everything learned before is scaled to it.
 * - A small part of every error is taken for a slower or faster machine too: what was learned of sizes that do not run now
 *   keeps up with those that do.
 */
export class CostModel {
  readonly #sizes: (Size | undefined)[] = new Array<Size | undefined>(SIZES).fill(undefined);
  #cost: StepCost | null = null;
  #measured = 0;
  #mostRows = FIRST_ROWS;
  /** Mean of the relative error. */
  #error = 0.25;
  /** Outliers in a row on one side, and of their times by the predictions the one nearest to 1. */
  #outliers = 0;
  #ratio = 1;

  /** The fit so far; null before the first measurement. */
  get cost(): StepCost | null {
    return this.#cost;
  }

  /** What such a step should take; 0 before the first measurement. */
  milliseconds(rows: number, attended: number): number {
    return this.#cost ? stepMilliseconds(this.#cost, rows, attended) : 0;
  }

  /** A step of `rows` rows that attended to `attended` tokens took this long. */
  observe(rows: number, attended: number, milliseconds: number): void {
    const measured = this.#judge(rows, attended, Math.max(milliseconds, LEAST_MILLISECONDS));
    const index = Math.min(31 - Math.clz32(rows), SIZES - 1);
    const size = this.#sizes[index] ?? new Size();
    this.#sizes[index] = size;
    size.add(rows, attended, measured);
    this.#measured++;
    this.#mostRows = Math.max(this.#mostRows, rows);
    this.#cost = fit(this.#sizes);
  }

  /**
   * The most rows of a chunk that starts at token `start` and joins a step of `rows` rows and `attended` tokens, so that the
   * step stays within `milliseconds` in spite of the usual error. At most `most`, and no more than double the rows of any
   * step so far: further away the fit knows nothing.
   */
  rowsWithin(milliseconds: number, rows: number, attended: number, start: number, most: number): number {
    const limit = Math.min(most, 2 * this.#mostRows - rows);
    const cost = this.#cost;
    if (!cost) return limit;
    const left = milliseconds / (1 + this.#error) - stepMilliseconds(cost, rows, attended);
    if (left <= 0) return 0;
    // n rows cost `perToken * n + perContextToken * (start * n + n (n + 1) / 2)`: the root of a quadratic, written so that
    // it holds without a quadratic term.
    const linear = cost.perToken + cost.perContextToken * (start + 0.5);
    const root = Math.sqrt(linear * linear + 2 * cost.perContextToken * left);
    return Math.min(limit, Math.floor((2 * left) / (linear + root)));
  }

  /** The time that counts for a step that took `milliseconds`. */
  #judge(rows: number, attended: number, milliseconds: number): number {
    const cost = this.#cost;
    if (!cost || this.#measured < WARM_UP) return milliseconds;
    let expected = Math.max(stepMilliseconds(cost, rows, attended), LEAST_MILLISECONDS);
    const limit = 1 + Math.max(USUAL, 3 * this.#error);
    const ratio = milliseconds / expected;
    if (ratio <= limit && ratio >= 1 / limit) {
      this.#outliers = 0;
    } else {
      const goesOn = this.#outliers > 0 && ratio > 1 === this.#ratio > 1;
      this.#ratio = !goesOn || Math.abs(Math.log(ratio)) < Math.abs(Math.log(this.#ratio)) ? ratio : this.#ratio;
      this.#outliers = goesOn ? this.#outliers + 1 : 1;
      if (this.#outliers === CHANGE) {
        for (const size of this.#sizes) size?.scale(this.#ratio);
        expected *= this.#ratio;
        this.#outliers = 0;
      }
    }
    const counted = Math.min(milliseconds, expected * limit);
    this.#error = Math.max(LEAST_ERROR, this.#error + 0.1 * (Math.abs(counted / expected - 1) - this.#error));
    const drift = (counted / expected) ** DRIFT;
    for (const size of this.#sizes) size?.scale(drift);
    return counted;
  }
}

/** Least squares over all sizes. */
function fit(sizes: readonly (Size | undefined)[]): StepCost {
  const matrix = new Float64Array(TERMS * TERMS);
  const right = new Float64Array(TERMS);
  for (const size of sizes) {
    if (!size) continue;
    for (let i = 0; i < matrix.length; i++) matrix[i] = matrix[i]! + size.matrix[i]!;
    for (let i = 0; i < TERMS; i++) right[i] = right[i]! + size.right[i]!;
  }
  // To one scale, so that the ridge means the same for each term.
  const scale = [0, 1, 2].map((i) => 1 / Math.sqrt(matrix[i * TERMS + i]!));
  let best: readonly number[] = [0, 0, 0];
  let most = 0;
  for (let subset = 1; subset < 1 << TERMS; subset++) {
    const solution = solve(matrix, right, scale, subset);
    if (solution.some((value) => value < 0)) continue;
    // What a least squares solution explains is its product with the right side.
    const explained = solution.reduce((sum, value, i) => sum + value * right[i]! * scale[i]!, 0);
    if (explained <= most) continue;
    most = explained;
    best = solution;
  }
  return { fixed: best[0]! * scale[0]!, perToken: best[1]! * scale[1]!, perContextToken: best[2]! * scale[2]! };
}

/** Gauss-Jordan on the terms in `subset`, scaled; the others are 0. The ridge makes every pivot positive. */
function solve(matrix: Float64Array, right: Float64Array, scale: readonly number[], subset: number): number[] {
  const terms = [0, 1, 2].filter((i) => subset & (1 << i));
  const rows = terms.map((i) => [
    ...terms.map((j) => matrix[i * TERMS + j]! * scale[i]! * scale[j]! + (i === j ? RIDGE : 0)),
    right[i]! * scale[i]!,
  ]);
  for (const [pivot, row] of rows.entries()) {
    for (const [other, target] of rows.entries()) {
      if (other === pivot) continue;
      const factor = target[pivot]! / row[pivot]!;
      for (let column = pivot; column < target.length; column++) target[column]! -= factor * row[column]!;
    }
  }
  const solution = [0, 0, 0];
  for (const [i, row] of rows.entries()) solution[terms[i]!] = row[terms.length]! / row[i]!;
  return solution;
}
