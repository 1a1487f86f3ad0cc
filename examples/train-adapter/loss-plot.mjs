const WIDTH = 640;
const HEIGHT = 360;
const MARGIN = { left: 56, right: 16, top: 32, bottom: 40 };

/** The losses of steps 1, 2, … as an SVG: each step a dot, and their moving mean a line. */
export function lossPlot(losses, title) {
  const top = niceCeiling(Math.max(...losses));
  const x = (step) =>
    MARGIN.left + ((step - 1) / Math.max(1, losses.length - 1)) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (loss) => HEIGHT - MARGIN.bottom - (loss / top) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const at = (loss, i) => `${x(i + 1).toFixed(1)},${y(loss).toFixed(1)}`;
  const grid = [0, 0.25, 0.5, 0.75, 1].map((share) => {
    const level = y(share * top).toFixed(1);
    return `<path d="M${MARGIN.left} ${level}H${WIDTH - MARGIN.right}" stroke="#ddd"/><text x="${MARGIN.left - 8}" y="${level}" text-anchor="end" dominant-baseline="middle">${share * top}</text>`;
  });
  const dots = losses.map((loss, i) => `<circle cx="${x(i + 1).toFixed(1)}" cy="${y(loss).toFixed(1)}" r="1.5"/>`);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<text x="${MARGIN.left}" y="18" font-size="14">${title}</text>
${grid.join("\n")}
<g fill="#9bc">${dots.join("")}</g>
<polyline fill="none" stroke="#246" stroke-width="2" points="${movingMean(losses, 9).map(at).join(" ")}"/>
<text x="${MARGIN.left}" y="${HEIGHT - 14}">1</text>
<text x="${WIDTH - MARGIN.right}" y="${HEIGHT - 14}" text-anchor="end">step ${losses.length}</text>
</svg>
`;
}

function movingMean(values, width) {
  return values.map((_, i) => {
    const near = values.slice(Math.max(0, i - width + 1), i + 1);
    return near.reduce((sum, value) => sum + value) / near.length;
  });
}

/** The next of 1, 2, 4 or 8 times a power of ten. */
function niceCeiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 8, 10].find((factor) => factor * power >= value) * power;
}
