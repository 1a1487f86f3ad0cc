import { TokenizerError } from "./tokenizer-error.js";

const firstPrivateUse = 0xe000;
const lastPrivateUse = 0xf8ff;

/**
 * Tells control tokens that stand inside messages from those that the template writes.
 *
 * Before a template runs, characters of the messages without which no control token can form are replaced by stand-ins
 * from Unicode's private use area, one for one, so that lengths stay the same and the template's own string operations
 * see no difference. A control token in the rendered text is then the template's own; afterwards the stand-ins are
 * replaced by what they stand for.
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
   * @param controlTokens texts of the control tokens
   * @param literals all text of the template
   */
  constructor(controlTokens: Iterable<string>, literals: readonly string[]) {
    const tokens = [...controlTokens].filter((token) => token !== "");
    const searched = withoutTokens(literals, tokens);
    const patterns = new Set<string>();
    for (const token of tokens) {
      // A punctuation mark that the template never looks for can go wherever it stands: then not even a template that
      // cuts and joins contents makes a control token of them. Where there is none, whole tokens lose their first character.
      const mark = Array.from(token).find((character) => /[\p{P}\p{S}]/u.test(character) && !searched.has(character));
      const [first = "", ...rest] = Array.from(token);
      patterns.add(mark === undefined ? `${escaped(first)}(?=${escaped(rest.join(""))})` : escaped(mark));
    }
    if (patterns.size > 0) this.#hidden = new RegExp([...patterns].join("|"), "gu");
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

/** The characters of the template that are not part of a control token: those it may search messages for. */
function withoutTokens(literals: readonly string[], tokens: readonly string[]): Set<string> {
  const characters = new Set<string>();
  for (const literal of literals) {
    let rest = literal;
    for (const token of tokens) rest = rest.replaceAll(token, "");
    for (const character of rest) characters.add(character);
  }
  return characters;
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

function escaped(text: string): string {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
}
