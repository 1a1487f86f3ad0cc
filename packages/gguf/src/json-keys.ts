/**
 * The keys of the outermost object of a JSON text that is known to be sound, in order, those that stand twice included.
 * In a sound text a string is a key of that object exactly if a colon follows it at depth 1.
 */
export function jsonKeys(text: string): string[] {
  const keys: string[] = [];
  let depth = 0;
  let string = { from: 0, to: 0 };
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (character === '"') {
      const from = i;
      for (i++; text[i] !== '"'; i++) if (text[i] === "\\") i++;
      string = { from, to: i + 1 };
    } else if (character === "{" || character === "[") depth++;
    else if (character === "}" || character === "]") depth--;
    else if (character === ":" && depth === 1) keys.push(JSON.parse(text.slice(string.from, string.to)) as string);
  }
  return keys;
}
