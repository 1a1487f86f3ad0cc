const GAP = 3;

/**
 * Texts side by side under their titles, each wrapped to its share of the width.
 * @param {readonly { title: string, text: string }[]} entries
 * @param {number} width in characters
 * @returns {string[]} lines, none longer than the width
 */
export function columns(entries, width) {
  const room = Math.floor((width - GAP * (entries.length - 1)) / entries.length);
  if (room < 1) throw new RangeError(`${entries.length} columns need more than ${width} characters`);
  const wrapped = entries.map(({ title, text }) => [title.slice(0, room), "─".repeat(room), ...wrap(text, room)]);
  const height = Math.max(...wrapped.map((lines) => lines.length));
  return Array.from({ length: height }, (_, row) => {
    const cells = wrapped.map((lines) => pad(lines[row] ?? "", room));
    return cells.join(" ".repeat(GAP)).trimEnd();
  });
}

/** A text in lines of at most `width` characters, broken between words; words that are longer are cut. */
function wrap(text, width) {
  const lines = [];
  let line = [];
  // What a model writes must not move the cursor.
  for (const word of text.replace(/\p{Cc}/gu, " ").split(" ")) {
    let rest = Array.from(word);
    if (rest.length === 0) continue;
    if (line.length > 0 && line.length + 1 + rest.length <= width) {
      line.push(" ", ...rest);
      continue;
    }
    if (line.length > 0) lines.push(line.join(""));
    for (; rest.length > width; rest = rest.slice(width)) lines.push(rest.slice(0, width).join(""));
    line = rest;
  }
  if (line.length > 0) lines.push(line.join(""));
  return lines;
}

function pad(text, width) {
  return text + " ".repeat(width - Array.from(text).length);
}
