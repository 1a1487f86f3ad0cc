import { TokenSplitter } from "./token-splitter.js";
import { TokenizerError } from "./tokenizer-error.js";

const firstPrivateUse = 0xe000;
const lastPrivateUse = 0xf8ff;

/**
 * Tells control tokens that stand inside messages from those that the template writes.
 *
 * Before the template runs, one character of every control token (of Qwen's: the bar) is replaced by a stand-in from
 * Unicode's private use area wherever it occurs in the messages. So no part of a message can become part of a control
 * token, even when a template cuts and joins texts: those in the rendered text are the template's own. Lengths stay the
 * same, and the character is the one that the template itself uses least, so that its searches in messages find what
 * they would have found. Afterwards the stand-ins are replaced by what they stand for.
 *
 * ```
 *   message     "a <|im_end|> b"      template   "<|im_start|>user\n" + content + "<|im_end|>\n"
 *   disguised   "a <.im_end.> b"      rendered   <|im_start|> user\na <.im_end.> b <|im_end|> \n
 *                                                own control                        own control
 * ```
 */
export class ContentDisguise {
  readonly #hidden: RegExp | undefined;

  /**
   * @param controlTokens id and text of the control tokens
   * @param literals all text of the template
   */
  constructor(controlTokens: readonly (readonly [number, string])[], literals: readonly string[]) {
    const counts = charactersOutside(new TokenSplitter(controlTokens), literals);
    const hidden = new Set<string>();
    for (const [, token] of controlTokens) {
      const character = rarest(token, counts);
      if (character !== undefined) hidden.add(character);
    }
    if (hidden.size > 0) this.#hidden = new RegExp(`[${[...hidden].map(escaped).join("")}]`, "gu");
  }

  /**
   * Disguises all strings in `variables` (keys of objects included).
   *
   * @param rendered the text that these variables render to, whose characters cannot be stand-ins either
   * @returns undefined when there is nothing to disguise: then no control token can come from the variables
   * @throws {TokenizerError} `bad-message` when the strings use up every private use character
   */
  disguise(variables: Record<string, unknown>, rendered: string): Disguised | undefined {
    const hidden = this.#hidden;
    if (hidden === undefined) return undefined;
    const characters = new Set<string>();
    const used = new Set(rendered.match(/[\ue000-\uf8ff]/g));
    const strings = stringsOf(variables);
    for (const text of strings) {
      for (const character of text.match(hidden) ?? []) characters.add(character);
      for (const character of text.match(/[\ue000-\uf8ff]/g) ?? []) used.add(character);
    }
    if (characters.size === 0) return undefined;
    const standIns = new Map<string, string>();
    let code = firstPrivateUse;
    for (const character of characters) {
      while (used.has(String.fromCharCode(code))) code++;
      if (code > lastPrivateUse) {
        const message =
          "The messages use every private use character of Unicode (U+E000 to U+F8FF); remove some, or pass " +
          "trustContents: true.";
        throw new TokenizerError("bad-message", message);
      }
      standIns.set(character, String.fromCharCode(code++));
    }
    return new Disguised(
      mapStrings(variables, (text) => text.replace(hidden, (character) => standIns.get(character)!)),
      standIns,
      strings,
    );
  }
}

/** Variables in disguise, and the way back. */
export class Disguised {
  readonly #characters: ReadonlyMap<string, string>;
  readonly #standIns: RegExp;

  constructor(
    readonly variables: Record<string, unknown>,
    standIns: ReadonlyMap<string, string>,
    /** The strings of the variables as they were. */
    readonly strings: readonly string[],
  ) {
    this.#characters = new Map([...standIns].map(([character, standIn]) => [standIn, character]));
    this.#standIns = new RegExp(`[${[...standIns.values()].join("")}]`, "g");
  }

  /** The text with every stand-in replaced by what it stands for. */
  reveal(text: string): string {
    return text.replace(this.#standIns, (standIn) => this.#characters.get(standIn)!);
  }
}

/** How often each character occurs in the template outside of control tokens: there it may search messages for it. */
function charactersOutside(controlTokens: TokenSplitter, literals: readonly string[]): Map<string, number> {
  const counts = new Map<string, number>();
  const count = (text: string): void => {
    for (const character of text) counts.set(character, (counts.get(character) ?? 0) + 1);
  };
  for (const literal of literals) {
    let start = 0;
    for (const match of controlTokens.matches(literal)) {
      count(literal.slice(start, match.start));
      start = match.end;
    }
    count(literal.slice(start));
  }
  return counts;
}

/** The character of a token that the template uses least; not a letter or digit, if there is another. */
function rarest(token: string, counts: ReadonlyMap<string, number>): string | undefined {
  const characters = Array.from(token);
  const marks = characters.filter((character) => !/[\p{L}\p{N}]/u.test(character));
  const candidates = marks.length > 0 ? marks : characters;
  const count = (character: string): number => counts.get(character) ?? 0;
  return candidates.sort((left, right) => count(left) - count(right))[0];
}

function stringsOf(value: unknown): string[] {
  const strings: string[] = [];
  mapStrings({ value }, (text) => {
    strings.push(text);
    return text;
  });
  return strings;
}

/** A copy of an object whose strings, keys included and however deep, went through `change`. */
function mapStrings(object: Record<string, unknown>, change: (text: string) => string): Record<string, unknown> {
  const changed = (value: unknown): unknown => {
    if (typeof value === "string") return change(value);
    if (Array.isArray(value)) return value.map(changed);
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [change(key), changed(item)]));
  };
  return changed(object) as Record<string, unknown>;
}

/** A character as it is written inside a class of a regular expression. */
function escaped(character: string): string {
  return /[\\\]^-]/.test(character) ? `\\${character}` : character;
}
