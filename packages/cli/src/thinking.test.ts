import { describe, expect, it } from "vitest";
import { ThinkingText } from "./thinking.js";

function split(pieces: string[]): { thinking: string; answer: string } {
  const text = new ThinkingText();
  const parts = [...pieces.map((piece) => text.push(piece)), text.end()];
  return { thinking: parts.map((part) => part.thinking).join(""), answer: parts.map((part) => part.answer).join("") };
}

describe("ThinkingText", () => {
  it.each([
    [["<think>", "\n\n", "</think>", "\n\n", "Hi"], "\n\n", "Hi"],
    [["<th", "ink>why</thi", "nk>\nbe", "cause"], "why", "because"],
    [["no <think>thoughts</think>"], "", "no <think>thoughts</think>"],
    [["<think>a < b</think>yes"], "a < b", "yes"],
    [["<think>cut off </th"], "cut off </th", ""],
    [["<thin"], "", "<thin"],
    [[" ", "\n<think>x</think>y"], "x", "y"],
    [["  plain"], "", "  plain"],
  ])("%j", (pieces, thinking, answer) => {
    expect(split(pieces)).toEqual({ thinking, answer });
  });

  it.each(["<think>\nwhy?\n</think>\n\nbecause", "<think></think>x", "<thought> no </think>"])(
    "gives the same for single characters: %j",
    (text) => {
      expect(split([...text])).toEqual(split([text]));
    },
  );
});
