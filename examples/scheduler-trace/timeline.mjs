const [width, height] = [1200, 300];

/** The rows of each step over time as an SVG: decode rows below, prompt rows above them; width is the step's time. */
export function timeline({ steps, duration }) {
  const most = Math.max(...steps.map(({ decodeRows, promptRows }) => decodeRows + promptRows));
  // Square roots, so that a few decode rows can be seen beside a long chunk.
  const y = (rows) => height * (1 - Math.sqrt(rows / most));
  const bars = (color, from, to) => {
    const path = steps.map((step) => {
      const [left, right] = [step.at, step.at + step.milliseconds].map((at) => ((width * at) / duration).toFixed(2));
      return `M${left} ${y(from(step)).toFixed(1)}V${y(to(step)).toFixed(1)}H${right}V${y(from(step)).toFixed(1)}Z`;
    });
    return `<path fill="${color}" d="${path.join("")}"/>`;
  };
  const seconds = Array.from({ length: Math.floor(duration / 1000) + 1 }, (_, i) => {
    return `<text x="${((width * i * 1000) / duration).toFixed(1)}" y="${height + 16}">${i} s</text>`;
  });
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height + 24}" font-family="sans-serif" font-size="11">
<title>Rows per step: decode rows (green), prompt rows (blue)</title>
${bars(
  "#4f9d69",
  () => 0,
  (step) => step.decodeRows,
)}
${bars(
  "#5b8def",
  (step) => step.decodeRows,
  (step) => step.decodeRows + step.promptRows,
)}
${seconds.join("")}
</svg>
`;
}
