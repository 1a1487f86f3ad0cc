import { expect, test } from "vitest";
import { quantiles } from "./quantiles.js";

test("a quantile is the least value that so large a share does not exceed", () => {
  const values = Array.from({ length: 200 }, (_, index) => 200 - index);
  expect(quantiles(values)).toEqual({ p50: 100, p99: 198, max: 200 });
  expect(quantiles([7])).toEqual({ p50: 7, p99: 7, max: 7 });
});

test("nothing has no quantiles", () => {
  expect(() => quantiles([])).toThrow(RangeError);
});
