import { LoraError } from "./errors.js";

/** A part of a regular expression. */
export type Node =
  | { readonly kind: "character"; readonly accepts: (character: string) => boolean }
  /** Matches no character, where `holds`. */
  | { readonly kind: "assertion"; readonly holds: (text: string, at: number) => boolean }
  | { readonly kind: "sequence"; readonly parts: readonly Node[] }
  | { readonly kind: "alternatives"; readonly branches: readonly Node[] }
  | { readonly kind: "repeat"; readonly part: Node; readonly least: number; readonly most: number }
  /** Lookahead and lookbehind. */
  | { readonly kind: "look"; readonly part: Node; readonly behind: boolean; readonly wanted: boolean };

const maxLength = 4096;
const maxDepth = 100;

/** Parses a regular expression in Python's syntax. @throws LoraError `bad-config` */
export function parsePattern(source: string): Node {
  const parser = new PatternParser(source);
  return parser.parse();
}

class PatternParser {
  readonly #source: string;
  #at = 0;
  #depth = 0;

  constructor(source: string) {
    this.#source = source;
  }

  parse(): Node {
    if (this.#source.length > maxLength) throw this.#refuse(`it has more than ${maxLength} characters`);
    const node = this.#alternatives();
    if (this.#at < this.#source.length) throw this.#refuse("a ) has no (");
    return node;
  }

  #alternatives(): Node {
    if (++this.#depth > maxDepth) throw this.#refuse(`groups are nested more than ${maxDepth} deep`);
    const branches = [this.#sequence()];
    while (this.#take("|")) branches.push(this.#sequence());
    this.#depth--;
    return branches.length === 1 ? branches[0]! : { kind: "alternatives", branches };
  }

  #sequence(): Node {
    const parts: Node[] = [];
    while (this.#at < this.#source.length && this.#peek() !== "|" && this.#peek() !== ")") parts.push(this.#repeated());
    return { kind: "sequence", parts };
  }

  #repeated(): Node {
    const start = this.#at;
    const part = this.#atom();
    const bounds = this.#quantifier();
    if (bounds === undefined) return part;
    if (part.kind === "assertion") throw this.#refuse("nothing to repeat", start);
    this.#take("?"); // Lazy or not: the texts that match as a whole are the same.
    if (this.#peek() === "+") throw this.#refuse("a possessive quantifier is not supported");
    if (this.#quantifier() !== undefined) throw this.#refuse("a quantifier follows another");
    return { kind: "repeat", part, ...bounds };
  }

  #quantifier(): { least: number; most: number } | undefined {
    if (this.#take("*")) return { least: 0, most: Number.POSITIVE_INFINITY };
    if (this.#take("+")) return { least: 1, most: Number.POSITIVE_INFINITY };
    if (this.#take("?")) return { least: 0, most: 1 };
    const braces = /^\{(\d*)(,?)(\d*)\}/.exec(this.#source.slice(this.#at));
    if (braces === null || (braces[1] === "" && braces[2] === "")) return undefined;
    this.#at += braces[0].length;
    const least = Number(braces[1]);
    const most = braces[2] === "" ? least : braces[3] === "" ? Number.POSITIVE_INFINITY : Number(braces[3]);
    if (most < least) throw this.#refuse("a quantifier's least is more than its most");
    return { least, most };
  }

  #atom(): Node {
    const start = this.#at;
    const character = this.#source[this.#at++]!;
    switch (character) {
      case ".":
        return { kind: "character", accepts: (c) => c !== "\n" };
      case "^":
        return { kind: "assertion", holds: (_, at) => at === 0 };
      case "$":
        return { kind: "assertion", holds: (text, at) => at === text.length };
      case "(":
        return this.#group();
      case "[":
        return this.#class();
      case "\\":
        return this.#escape();
      case "*":
      case "+":
      case "?":
        throw this.#refuse("nothing to repeat", start);
      default:
        return { kind: "character", accepts: (c) => c === character };
    }
  }

  #group(): Node {
    const start = this.#at - 1;
    let wrap = (part: Node): Node => part;
    if (this.#peek() === "?") {
      const opening = /^\?(:|=|!|<=|<!|P<[A-Za-z_]\w*>)/.exec(this.#source.slice(this.#at))?.[1];
      if (opening === undefined) {
        throw this.#refuse("only (?:…), (?P<name>…), (?=…), (?!…), (?<=…) and (?<!…) are supported", start);
      }
      this.#at += 1 + opening.length;
      if (/[=!]$/.test(opening)) {
        wrap = (part) => ({ kind: "look", part, behind: opening.startsWith("<"), wanted: opening.endsWith("=") });
      }
    }
    const part = this.#alternatives();
    if (!this.#take(")")) throw this.#refuse("a ( has no )", start);
    return wrap(part);
  }

  #class(): Node {
    const start = this.#at - 1;
    const negated = this.#take("^");
    const tests: ((character: string) => boolean)[] = [];
    for (let first = true; first || this.#peek() !== "]"; first = false) {
      if (this.#at >= this.#source.length) throw this.#refuse("a [ has no ]", start);
      const from = this.#classItem();
      if (typeof from === "string" && /^-[^\]]/.test(this.#source.slice(this.#at))) {
        this.#at++;
        const to = this.#classItem();
        if (typeof to !== "string" || to < from) throw this.#refuse("a character range is no range", start);
        tests.push((c) => c >= from && c <= to);
      } else tests.push(typeof from === "string" ? (c) => c === from : from);
    }
    this.#at++;
    return { kind: "character", accepts: (c) => tests.some((test) => test(c)) !== negated };
  }

  #classItem(): string | ((character: string) => boolean) {
    const character = this.#source[this.#at++]!;
    if (character !== "\\") return character;
    const escaped = this.#source[this.#at++];
    const set = escaped === undefined ? undefined : sets[escaped];
    return set ?? (escaped === "b" ? "\b" : this.#literal(escaped));
  }

  #escape(): Node {
    const escaped = this.#source[this.#at++];
    const set = escaped === undefined ? undefined : sets[escaped];
    if (set !== undefined) return { kind: "character", accepts: set };
    const assertion = escaped === undefined ? undefined : assertions[escaped];
    if (assertion !== undefined) return { kind: "assertion", holds: assertion };
    const literal = this.#literal(escaped);
    return { kind: "character", accepts: (c) => c === literal };
  }

  #literal(escaped: string | undefined): string {
    if (escaped === undefined) throw this.#refuse("it ends in a backslash");
    const control = { n: "\n", t: "\t", r: "\r", f: "\f", v: "\v", a: "\x07" }[escaped];
    if (control !== undefined) return control;
    if (/[0-9A-Za-z]/.test(escaped)) throw this.#refuse(`\\${escaped} is not supported`, this.#at - 2);
    return escaped;
  }

  #peek(): string | undefined {
    return this.#source[this.#at];
  }

  #take(character: string): boolean {
    if (this.#peek() !== character) return false;
    this.#at++;
    return true;
  }

  #refuse(reason: string, at = this.#at): LoraError {
    const shown = this.#source.length > 200 ? `${this.#source.slice(0, 200)}…` : this.#source;
    return new LoraError(
      "bad-config",
      `the regular expression ${JSON.stringify(shown)} cannot be used: ${reason} (at character ${at}); list the modules' names instead`,
      { value: this.#source },
    );
  }
}

const isWord = (character: string | undefined): boolean => character !== undefined && /\w/.test(character);
const isBoundary = (text: string, at: number): boolean => isWord(text[at - 1]) !== isWord(text[at]);

const sets: Readonly<Record<string, ((character: string) => boolean) | undefined>> = Object.assign(
  Object.create(null),
  {
    d: (c: string) => /\d/.test(c),
    D: (c: string) => /\D/.test(c),
    w: (c: string) => /\w/.test(c),
    W: (c: string) => /\W/.test(c),
    s: (c: string) => /\s/.test(c),
    S: (c: string) => /\S/.test(c),
  },
);

const assertions: Readonly<Record<string, ((text: string, at: number) => boolean) | undefined>> = Object.assign(
  Object.create(null),
  {
    A: (_: string, at: number) => at === 0,
    Z: (text: string, at: number) => at === text.length,
    b: isBoundary,
    B: (text: string, at: number) => !isBoundary(text, at),
  },
);
