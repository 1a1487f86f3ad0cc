import { LoraError } from "./errors.js";
import { type Node, parsePattern } from "./pattern-parser.js";

/** Steps that the expressions of one configuration may take together; a second or two, and far more than any sane one. */
export class PatternBudget {
  #left = 30_000_000;

  /** @throws LoraError `bad-config` when there are none left. */
  spend(steps: number, source: string): void {
    this.#left -= steps;
    if (this.#left >= 0) return;
    throw new LoraError(
      "bad-config",
      "the configuration's regular expressions take too long; list the modules' names instead",
      { value: source },
    );
  }
}

/**
 * A test for `re.fullmatch(source, text)` as Python has it. No expression can make it hang: for each of its nodes it keeps,
 * by the position where a match may begin, the set of positions where it may end, so that nothing is tried twice; and the
 * steps are counted.
 *
 * Anything but back references, inline flags, and atomic or possessive parts is understood.
 *
 * @throws LoraError `bad-config` for an expression that Python refuses, or that has one of these
 */
export function compilePattern(source: string, budget: PatternBudget): (text: string) => boolean {
  const node = parsePattern(source);
  return (text) => (new Match(text, source, budget).ends(node)[0]! & bit(text.length)) !== 0n;
}

/** By each position of the text, where a match that begins there may end: bit p stands for position p. */
type Ends = readonly bigint[];

const bit = (position: number): bigint => 1n << BigInt(position);

class Match {
  readonly #text: string;
  readonly #source: string;
  readonly #budget: PatternBudget;

  constructor(text: string, source: string, budget: PatternBudget) {
    this.#text = text;
    this.#source = source;
    this.#budget = budget;
  }

  ends(node: Node): Ends {
    const text = this.#text;
    switch (node.kind) {
      case "character":
        return this.#every((at) => (at < text.length && node.accepts(text[at]!) ? bit(at + 1) : 0n));
      case "assertion":
        return this.#every((at) => (node.holds(text, at) ? bit(at) : 0n));
      case "sequence":
        return node.parts.reduce((before: Ends, part) => this.#compose(before, this.ends(part)), this.#every(bit));
      case "alternatives": {
        const branches = node.branches.map((branch) => this.ends(branch));
        return this.#every((at) => branches.reduce((sum, branch) => sum | branch[at]!, 0n));
      }
      case "look": {
        const found = this.ends(node.part);
        const reached = node.behind ? found.reduce((sum, set) => sum | set, 0n) : 0n;
        const holds = (at: number) => (node.behind ? (reached & bit(at)) !== 0n : found[at] !== 0n);
        return this.#every((at) => (holds(at) === node.wanted ? bit(at) : 0n));
      }
      case "repeat": {
        const part = this.ends(node.part);
        const optional = part.map((set, at) => set | bit(at));
        return this.#compose(this.#power(part, node.least), this.#power(optional, node.most - node.least));
      }
    }
  }

  /** `count` matches in a row. More than one for each position changes nothing: a match either moves on or may stay. */
  #power(part: Ends, count: number): Ends {
    let result: Ends = this.#every(bit);
    let square = part;
    for (let left = Math.min(count, this.#text.length + 1); left > 0; left >>= 1) {
      if ((left & 1) === 1) result = this.#compose(result, square);
      if (left > 1) square = this.#compose(square, square);
    }
    return result;
  }

  /** Where a match of one and then the other may end. */
  #compose(first: Ends, second: Ends): Ends {
    let steps = 0;
    const composed = first.map((set) => {
      let sum = 0n;
      for (let at = 0, rest = set; rest !== 0n; at++, rest >>= 1n, steps++) if ((rest & 1n) !== 0n) sum |= second[at]!;
      return sum;
    });
    this.#budget.spend(steps, this.#source);
    return composed;
  }

  #every(set: (at: number) => bigint): Ends {
    this.#budget.spend(this.#text.length + 1, this.#source);
    return Array.from({ length: this.#text.length + 1 }, (_, at) => set(at));
  }
}
