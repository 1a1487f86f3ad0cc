import { describe, expect, test } from "vitest";
import { ChatTemplate } from "./chat-template.js";
import { thrownBy } from "./test-support.js";

function render(source: string, variables: Record<string, unknown> = {}): string {
  return new ChatTemplate(source).render(variables);
}

describe("strip, lstrip and rstrip are Python's", () => {
  test.each([
    ["x.strip('\\n')", "\n \na \n\n", " \na "],
    ["x.lstrip('\\n')", "\n\n a\n", " a\n"],
    ["x.rstrip('ab')", "xyabba", "xy"],
    ["x.strip('🦊a')", "🦊a-a🦊", "-"],
    ["x.strip('🦊')", "🦋🦊", "🦋"],
    ["x.strip('a')", "aaa", ""],
    ["x.strip('')", " a ", " a "],
    ["x.strip(none)", " a ", "a"],
    ["x.strip()", "\x1c\x85\u3000 a\ufeff\t", "a\ufeff"],
    ["x.split('|')[0].rstrip('\\n').lstrip()", " a\n|b", "a"],
    ["(x.lstrip('-') + '!').strip('!')", "--a", "a"],
  ])("%s of %j", (expression, x, stripped) => {
    expect(render(`{{ ${expression} }}`, { x })).toBe(stripped);
  });

  test("wherever the call stands", () => {
    const source =
      "{% macro trimmed(x) %}{{ x.strip('-') }}{% endmacro %}" +
      "{% for x in [y.strip('-')] if x.rstrip('!') == 'a' %}{{ trimmed('-' ~ x) }}{% endfor %}";
    expect(render(source, { y: "-a!-" })).toBe("a!");
  });

  test("on what is not a string it is an error", () => {
    expect(thrownBy(() => render("{{ x.strip('a') }}", { x: 1 })).message).toMatch(/strip\(\) is a method of strings/);
    expect(thrownBy(() => render("{{ x.strip(1) }}", { x: "a" })).message).toMatch(
      /strip\(\) takes a string or nothing/,
    );
  });
});

describe("what every template can use", () => {
  test("constants and functions", () => {
    expect(render("{{ [true, True, false, False, none, None] | tojson }}")).toBe(
      "[true, true, false, false, null, null]",
    );
    expect(render("{{ [range(3), range(1, 3), range(5, 0, -2), range(2, 0)] | tojson }}")).toBe(
      "[[0, 1, 2], [1, 2], [5, 3, 1], []]",
    );
    expect(render("{{ strftime_now('%Y') }}")).toBe(String(new Date().getFullYear()));
  });

  test("one template renders many times", () => {
    const template = new ChatTemplate("{% set n = n + 1 %}{{ n }}");
    expect([template.render({ n: 1 }), template.render({ n: 5 })]).toEqual(["2", "6"]);
  });

  test("literals are all text of the template", () => {
    const source = "a{# no #}{% if x == 'b' %}{{ 'c' + y.split('d')[0] }}{% else %}e{% endif %}";
    expect(new ChatTemplate(source).literals).toEqual(["a", "b", "c", "d", "e"]);
  });
});

describe("a template that never ends, or grows without end, is an error", () => {
  test.each([
    ["{% for i in range(1000000000) %}{% endfor %}", "range() of 1000000000 items; the most is 1000000"],
    ["{{ range(0, 1, 0) }}", "range() of Infinity items; the most is 1000000"],
    ["{% set n = range(1000) %}{% for i in n %}{% for j in n %}{% endfor %}{% endfor %}", "more than 5000000 steps"],
    [
      `{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(30) %}{% set ns.s = ns.s + ns.s %}{% endfor %}`,
      "a string of more than 67108864 characters",
    ],
    [
      `{% set ns = namespace(s=[1, 2]) %}{% for i in range(30) %}{% set ns.s = ns.s + ns.s %}{% endfor %}`,
      "a list of more than 1000000 items",
    ],
  ])("%s", (source, reason) => {
    expect(thrownBy(() => render(source))).toEqual({
      code: "template-failed",
      message: `The chat template raised an error: ${reason}. Check the messages, or render the prompt yourself and encode it.`,
    });
  });

  test("endless recursion", () => {
    expect(thrownBy(() => render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")).code).toBe("template-failed");
  });

  test("deep nesting", () => {
    const error = thrownBy(() => new ChatTemplate(`{{ ${"(".repeat(100_000)}1${")".repeat(100_000)} }}`));
    expect(error.message).toMatch(/^The chat template does not parse: /);
  });
});
