import { expect, test } from "vitest";
import { TokenSplitter } from "./token-splitter.js";

const splitter = new TokenSplitter([
  [1, "<a>"],
  [2, "<a><b>"],
  [3, "<b>"],
  [4, "<b>"],
  [5, ""],
]);

test("the leftmost and then the longest", () => {
  expect([...splitter.matches("x<a><b><a><c><b")]).toEqual([
    { id: 2, start: 1, end: 7 },
    { id: 1, start: 7, end: 10 },
  ]);
});

test("of two with the same text the first", () => {
  expect([...splitter.matches("<b>")]).toEqual([{ id: 3, start: 0, end: 3 }]);
});

test("nothing in a text without tokens, or without text", () => {
  expect([...splitter.matches("<a <")]).toEqual([]);
  expect([...splitter.matches("")]).toEqual([]);
});
