import { describe, expect, it } from "vitest";
import { barPanel, linePanel, svgPicture } from "./svg.js";

/** Names of the elements in order of their beginning. @throws Error where the text is not well-formed. */
function elements(svg: string): string[] {
  const names: string[] = [];
  const open: string[] = [];
  const rest = svg.replace(/<(\/?)([a-z]+)((?: [a-zA-Z-]+="[^"<&]*")*)(\/?)>/g, (_, end, name, _attributes, empty) => {
    if (end === "/") {
      const opened = open.pop();
      if (opened !== name) throw new Error(`</${name}> closes <${opened}>`);
    } else {
      names.push(name);
      if (empty === "") open.push(name);
    }
    return "";
  });
  if (open.length > 0) throw new Error(`<${open.at(-1)}> is not closed`);
  if (/[<>]|&(?!amp;|lt;|gt;)/.test(rest)) throw new Error(`not well-formed: ${rest}`);
  return names;
}

const count = (svg: string, name: string) => elements(svg).filter((element) => element === name).length;

describe("svgPicture", () => {
  const bars = barPanel("a < b & c", [{ name: "x", value: 2, remark: "2×" }], 1);
  const line = linePanel("steps", [1, 2, 4], "rows", "ms");

  it("puts panels under one another", () => {
    const svg = svgPicture([bars, line]);
    expect(count(svg, "g")).toBe(2);
    expect(svg).toContain(`<g transform="translate(0 ${bars.height})">`);
    expect(svg).toContain(`viewBox="0 0 720 ${bars.height + line.height}"`);
  });

  it("escapes text", () => {
    expect(svgPicture([bars])).toContain(">a &lt; b &amp; c</text>");
  });
});

describe("barPanel", () => {
  it("draws bars in proportion, and the mark", () => {
    const bars = [
      { name: "x", value: 4, remark: "" },
      { name: "y", value: 1, remark: "" },
    ];
    const { body } = barPanel("title", bars, 1);
    expect([...body.matchAll(/<rect [^>]*width="([\d.]+)"/g)].map((match) => Number(match[1]))).toEqual([320, 80]);
    expect(body).toContain('<path d="M280 ');
  });

  it("leaves room for a mark beyond all bars", () => {
    expect(barPanel("title", [{ name: "x", value: 1, remark: "" }], 4).body).toContain('<path d="M520 ');
  });
});

describe("linePanel", () => {
  it("draws a point for each value, the largest at the top", () => {
    const svg = svgPicture([linePanel("steps", [5, 10, 20], "rows", "ms")]);
    expect(count(svg, "circle")).toBe(3);
    expect(/points="([^"]*)"/.exec(svg)?.[1]?.split(" ")).toEqual(["274.67,251", "485.33,186", "696,56"]);
  });

  it("puts ticks at 1, 2 or 5 times a power of ten", () => {
    const { body } = linePanel("steps", [0.3, 1.7], "rows", "ms");
    const labels = [...body.matchAll(/text-anchor="end">([\d.]+)</g)].map((match) => Number(match[1]));
    expect(labels).toEqual([0, 0.5, 1, 1.5]);
  });
});
