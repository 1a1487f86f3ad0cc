const WIDTH = 720;
const MARGIN = 24;
const INK = "#24292f";
const FAINT = "#d0d7de";
const COLOR = "#2f7d4f";

/** A part of a picture: what it draws in its own coordinates, 720 wide, and how high it is. */
export interface Panel {
  readonly height: number;
  readonly body: string;
}

/** One picture of panels, one under the other, on white. */
export function svgPicture(panels: readonly Panel[]): string {
  let top = 0;
  const groups = panels.map(({ height, body }) => {
    const group = `<g transform="translate(0 ${top})">${body}</g>`;
    top += height;
    return group;
  });
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${top}" width="${WIDTH}" height="${top}" font-family="system-ui, sans-serif" font-size="13" fill="${INK}">`,
    `<rect width="${WIDTH}" height="${top}" fill="#fff"/>`,
    ...groups,
    "</svg>\n",
  ].join("\n");
}

/** Horizontal bars from 0, each with a name before it and a remark behind it; a line where the value is `mark`. */
export function barPanel(
  title: string,
  bars: readonly { readonly name: string; readonly value: number; readonly remark: string }[],
  mark: number,
): Panel {
  const [left, right, top, step] = [200, 200, 48, 26];
  const height = top + bars.length * step + MARGIN;
  const scale = (WIDTH - left - right) / Math.max(mark, ...bars.map((bar) => bar.value));
  const line = left + mark * scale;
  const rows = bars.map(({ name, value, remark }, index) => {
    const y = top + index * step;
    const width = value * scale;
    return [
      text(left - 8, y + 14, name, "end"),
      `<rect x="${left}" y="${y}" width="${round(width)}" height="18" fill="${COLOR}"/>`,
      text(left + Math.max(width, mark * scale) + 8, y + 14, remark),
    ].join("");
  });
  return {
    height,
    body: [
      heading(title),
      ...rows,
      `<path d="M${round(line)} ${top - 6}V${height - MARGIN + 2}" stroke="${INK}" stroke-dasharray="3 3"/>`,
    ].join("\n"),
  };
}

/** A line through values at x = 1, 2, 3, …, from 0 up. */
export function linePanel(title: string, values: readonly number[], xName: string, yName: string): Panel {
  const [left, top, bottom, plot] = [64, 56, 48, 260];
  const height = top + plot + bottom;
  const most = Math.max(...values);
  const tick = niceStep(most / 5);
  const x = (index: number) => left + ((WIDTH - left - MARGIN) * (index + 1)) / values.length;
  const y = (value: number) => top + plot * (1 - value / most);
  const points = values.map((value, index) => `${round(x(index))},${round(y(value))}`);
  const lines: string[] = [];
  for (let at = 0; at <= most; at += tick) {
    lines.push(`<path d="M${left} ${round(y(at))}H${WIDTH - MARGIN}" stroke="${FAINT}"/>`);
    lines.push(text(left - 8, y(at) + 4, String(round(at)), "end"));
  }
  for (let at = 8; at <= values.length; at += 8) lines.push(text(x(at - 1), top + plot + 20, String(at), "middle"));
  return {
    height,
    body: [
      heading(title),
      ...lines,
      text(left, top - 12, yName),
      text(WIDTH - MARGIN, top + plot + 40, xName, "end"),
      `<polyline points="${points.join(" ")}" fill="none" stroke="${COLOR}" stroke-width="2"/>`,
      ...points
        .map((point) => point.split(","))
        .map(([cx, cy]) => `<circle cx="${cx}" cy="${cy}" r="2.5" fill="${COLOR}"/>`),
    ].join("\n"),
  };
}

/** 1, 2 or 5 times a power of ten: the least that is not under `least`. */
function niceStep(least: number): number {
  const power = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((times) => times * power).find((step) => step >= least) ?? 10 * power;
}

function heading(title: string): string {
  return `<text x="${MARGIN}" y="28" font-size="15" font-weight="600">${escapeText(title)}</text>`;
}

function text(x: number, y: number, content: string, anchor = "start"): string {
  return `<text x="${round(x)}" y="${round(y)}" text-anchor="${anchor}">${escapeText(content)}</text>`;
}

function round(value: number): number {
  return Math.round(value * 100) / 100;
}

function escapeText(content: string): string {
  return content.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}
