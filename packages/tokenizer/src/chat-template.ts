import { Template } from "@huggingface/jinja";
import { BoundedInterpreter } from "./bounded-interpreter.js";
import { pythonStrip } from "./python-strip.js";
import { TokenizerError } from "./tokenizer-error.js";

/** What we read of a node of the parsed template. */
interface Node {
  type: string;
  [field: string]: unknown;
}

/** A chat template, parsed once: Jinja as transformers and llama.cpp write it. */
export class ChatTemplate {
  /** All text of the template itself: what stands outside of tags and every string inside of them. */
  readonly literals: readonly string[];
  readonly #program: Template["parsed"];
  readonly #iterables = new Set<unknown>();

  /** @throws {TokenizerError} `template-failed` when the source does not parse */
  constructor(source: string) {
    const literals: string[] = [];
    try {
      this.#program = new Template(source).parsed;
      for (const node of nodesOf(this.#program)) {
        if (node.type === "StringLiteral") literals.push(String(node.value));
        if (node.type === "For") this.#iterables.add(iterableOf(node));
        if (node.type === "CallExpression") callStripOfPython(node);
      }
    } catch (error) {
      throw failure("does not parse", error);
    }
    this.literals = literals;
  }

  /** @throws {TokenizerError} `template-failed` when the template raises an error, with its message */
  render(variables: Readonly<Record<string, unknown>>): string {
    try {
      const interpreter = new BoundedInterpreter({ ...stripFunctions, ...variables }, this.#iterables);
      return String(interpreter.run(this.#program).value);
    } catch (error) {
      throw failure("raised an error", error);
    }
  }
}

/** The functions that stand in for the methods; no template can name them, as no identifier has a dot. */
const stripFunctions = {
  "str.strip": (text: unknown, characters?: unknown) => strip("strip", text, characters, "both"),
  "str.lstrip": (text: unknown, characters?: unknown) => strip("lstrip", text, characters, "left"),
  "str.rstrip": (text: unknown, characters?: unknown) => strip("rstrip", text, characters, "right"),
};

function strip(name: string, text: unknown, characters: unknown, side: "left" | "right" | "both"): string {
  if (typeof text !== "string") throw new Error(`${name}() is a method of strings`);
  if (characters != null && typeof characters !== "string") throw new Error(`${name}() takes a string or nothing`);
  return pythonStrip(text, characters, side);
}

/** `text.lstrip(chars)` becomes `str.lstrip(text, chars)`: the library's own methods strip white space whatever `chars` is. */
function callStripOfPython(call: Node): void {
  const callee = call.callee as Node;
  if (callee.type !== "MemberExpression" || callee.computed === true) return;
  const name = `str.${String((callee.property as Node).value)}`;
  if (!Object.hasOwn(stripFunctions, name)) return;
  call.args = [callee.object, ...(call.args as unknown[])];
  call.callee = { type: "Identifier", value: name };
}

/** The node that a `for` statement evaluates once to get its items. */
function iterableOf(node: Node): unknown {
  const iterable = node.iterable as Node;
  return iterable.type === "SelectExpression" ? iterable.lhs : iterable;
}

/** Every node below `root`, in the order of the source, without recursion: nesting is up to the template. */
function* nodesOf(root: unknown): Generator<Node> {
  const waiting = [root];
  while (waiting.length > 0) {
    const value = waiting.pop();
    if (typeof value !== "object" || value === null) continue;
    if (!Array.isArray(value) && !(value instanceof Map)) yield value as Node;
    const children = value instanceof Map ? [...value].flat() : Object.values(value);
    for (const child of children.reverse()) waiting.push(child);
  }
}

function failure(what: string, cause: unknown): TokenizerError {
  const reason = cause instanceof Error ? cause.message : String(cause);
  const message = `The chat template ${what}: ${reason}. Check the messages, or render the prompt yourself and encode it.`;
  return new TokenizerError("template-failed", message, { cause });
}
