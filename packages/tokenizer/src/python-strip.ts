/** What `str.isspace` of Python calls white space; JavaScript's own `trim` differs in U+001C to U+001F, U+0085, U+FEFF. */
const whitespace = new Set(
  "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
);

/**
 * `str.strip(chars)`, `str.lstrip(chars)` and `str.rstrip(chars)` of Python: removes every character of the set
 * `characters` (null or undefined: white space) from the named sides.
 */
export function pythonStrip(
  text: string,
  characters: string | null | undefined,
  side: "left" | "right" | "both",
): string {
  const set = characters == null ? whitespace : new Set(characters);
  let start = 0;
  let end = text.length;
  while (side !== "right" && start < end) {
    const character = String.fromCodePoint(text.codePointAt(start)!);
    if (!set.has(character)) break;
    start += character.length;
  }
  while (side !== "left" && end > start) {
    const character = lastCharacter(text, end);
    if (!set.has(character)) break;
    end -= character.length;
  }
  return text.slice(start, end);
}

function lastCharacter(text: string, end: number): string {
  const pair = text.slice(Math.max(0, end - 2), end);
  return pair.length === 2 && pair.codePointAt(0)! > 0xffff ? pair : text.charAt(end - 1);
}
