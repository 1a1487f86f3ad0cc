import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { LoraError } from "./errors.js";
import { compilePattern, PatternBudget } from "./pattern.js";

const matches = (source: string, text: string) => compilePattern(source, new PatternBudget())(text);

describe("compilePattern", () => {
  // What Python's re.fullmatch says.
  test.each([
    [".*(self_attn\\.(q|k)_proj|mlp\\.down_proj)", "model.layers.1.self_attn.q_proj", true],
    [".*(self_attn\\.(q|k)_proj|mlp\\.down_proj)", "model.layers.1.self_attn.v_proj", false],
    ["self_attn", "model.layers.1.self_attn.q_proj", false],
    ["(?:\\bmodel\\.layers\\.[\\d]{1,}\\.(?:self_attn|mlp)\\.(?:q_proj|up_proj))", "model.layers.12.mlp.up_proj", true],
    ["^(?!.*layers\\.1\\.).*_proj$", "model.layers.1.mlp.up_proj", false],
    ["^(?!.*layers\\.1\\.).*_proj$", "model.layers.11.mlp.up_proj", true],
    ["model(?=\\.).*(?<=q)_proj", "model.layers.0.self_attn.q_proj", true],
    ["model(?=\\.).*(?<=q)_proj", "model.layers.0.self_attn.k_proj", false],
    [".*(?<!q)_proj", "self_attn.q_proj", false],
    [".*layers\\.[0-3]\\..*", "model.layers.3.mlp.up_proj", true],
    [".*layers\\.([0-3])\\..*", "model.layers.4.mlp.up_proj", false],
    ["(?P<path>.*)\\.(?P<name>[a-z]+_proj)", "model.layers.4.mlp.up_proj", true],
    ["a{2}", "aa", true],
    ["a{2}", "aaa", false],
    ["a{,2}b", "aab", true],
    ["a{2,}b", "ab", false],
    ["a{2,3}?", "aaa", true],
    ["a{x}", "a{x}", true],
    ["[]a]+", "a]a", true],
    ["[^]a]+", "b]", false],
    ["[a\\-z]+", "a-z", true],
    ["[\\w.-]+", "q_proj.1-2", true],
    ["(|a)+b", "aab", true],
    ["(a*)*b", "aaab", true],
    ["(a|ab)(c|bcd)", "abcd", true],
    ["\\Aq\\Z", "q", true],
    ["q\\Bp", "qp", true],
    ["q\\b_", "q_", false],
    ["", "", true],
    ["", "a", false],
    ["a||b", "", true],
    ["a.c", "a\nc", false],
  ])("%j and %j: %s", (source, text, expected) => {
    expect(matches(source, text)).toBe(expected);
  });

  test.each([
    "(",
    ")",
    "a)",
    "[a",
    "*a",
    "a**",
    "a+*",
    "a{3,2}",
    "^*",
    "\\",
    "(?P=name)",
    "(?i)a",
    "(?>a)",
    "a*+",
    "\\1",
    "[z-a]",
    "\\q",
  ])("refuses %j, as Python does or because it is not supported", (source) => {
    expect(() => matches(source, "a")).toThrow(expect.objectContaining({ code: "bad-config", value: source }));
  });

  test("agrees with the expressions of JavaScript where both have the same syntax", () => {
    const { node } = fc.letrec<{ node: string }>((tie) => ({
      node: fc.oneof(
        { depthSize: "small", withCrossShrink: true },
        fc.constantFrom("a", "b", ".", "\\w", "[ab]", "[^a]", "\\.", "\\d"),
        fc.tuple(tie("node"), tie("node")).map(([x, y]) => x + y),
        fc.tuple(tie("node"), tie("node")).map(([x, y]) => `(?:${x}|${y})`),
        fc
          .tuple(tie("node"), fc.constantFrom("*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"))
          .map(([x, q]) => `(?:${x})${q}`),
        tie("node").map((x) => `(?=${x})`),
        tie("node").map((x) => `(?!${x})`),
        tie("node").map((x) => `(?<=${x})`),
      ),
    }));
    const text = fc.string({ unit: fc.constantFrom("a", "b", ".", "1"), maxLength: 7 });
    fc.assert(
      fc.property(node, text, (source, subject) => {
        expect(matches(source, subject)).toBe(new RegExp(`^(?:${source})$`).test(subject));
      }),
      { seed: 3, numRuns: 5000 },
    );
  });

  test("expressions that backtrack without end elsewhere take a moment", () => {
    const text = `model.layers.35.self_attn.${"q".repeat(20)}_proj`;
    const start = performance.now();
    for (const source of ["(.*)*x", "(.+)+x", "((.|.)*)*x", "(.*.*.*.*.*)*x", "(q?){40}q{40}"])
      expect(matches(source, text)).toBe(false);
    expect(performance.now() - start).toBeLessThan(2000);
    const hostile = `${"(.*".repeat(99)}${")*".repeat(99)}${".*".repeat(1500)}x`;
    const budget = new PatternBudget();
    const test = compilePattern(hostile, budget);
    expect(() => {
      for (let i = 0; i < 1000; i++) test(text);
    }).toThrow(LoraError);
    expect(() => matches("(".repeat(200) + ")".repeat(200), "a")).toThrow("nested more than");
    expect(() => matches("a".repeat(5000), "a")).toThrow("characters");
  });
});
