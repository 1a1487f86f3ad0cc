interface Node {
  readonly children: Map<number, Node>;
  id?: number;
}

/** A token found in a text: its id, and where in the text it stands (UTF-16 units, end exclusive). */
export interface TokenMatch {
  id: number;
  start: number;
  end: number;
}

/** Finds a set of literal tokens in texts: the leftmost first, and of those that start together the longest. */
export class TokenSplitter {
  readonly #root: Node = { children: new Map() };

  /** @param tokens id and text of each token; of two with the same text the first wins; empty ones are never found */
  constructor(tokens: Iterable<readonly [id: number, text: string]>) {
    for (const [id, text] of tokens) {
      if (text === "") continue;
      let node = this.#root;
      for (let index = 0; index < text.length; index++) {
        const unit = text.charCodeAt(index);
        let child = node.children.get(unit);
        if (child === undefined) {
          child = { children: new Map() };
          node.children.set(unit, child);
        }
        node = child;
      }
      node.id ??= id;
    }
  }

  *matches(text: string): Generator<TokenMatch> {
    let start = 0;
    while (start < text.length) {
      const match = this.#longestAt(text, start);
      if (match !== undefined) yield match;
      start = match?.end ?? start + 1;
    }
  }

  #longestAt(text: string, start: number): TokenMatch | undefined {
    let longest: TokenMatch | undefined;
    let node = this.#root.children.get(text.charCodeAt(start));
    for (let end = start + 1; node !== undefined; end++) {
      if (node.id !== undefined) longest = { id: node.id, start, end };
      node = end < text.length ? node.children.get(text.charCodeAt(end)) : undefined;
    }
    return longest;
  }
}
