import { describe, expect, it } from "vitest";
import { median, outliers } from "./statistics.js";

describe("median", () => {
  it.each([
    [[3], 3],
    [[9, 1, 5], 5],
    [[10, 9, 1, 2], 5.5],
  ])("of %j is %d", (values, expected) => {
    expect(median(values)).toBe(expected);
  });

  it("leaves the values in their order", () => {
    const values = [3, 1, 2];
    median(values);
    expect(values).toEqual([3, 1, 2]);
  });
});

describe("outliers", () => {
  it("finds nothing over a line", () => {
    const { overTrend, rise, fall } = outliers([10, 20, 30, 40, 50, 60]);
    expect(overTrend.ratio).toBeCloseTo(1, 12);
    expect(rise).toEqual({ index: 1, ratio: 2 });
    expect(fall).toEqual({ index: 4, ratio: 50 / 60 });
  });

  it("names the value that stands out from the line through its neighbours", () => {
    const { overTrend, rise, fall } = outliers([10, 11, 12, 26, 14, 15, 16]);
    expect(overTrend).toEqual({ index: 3, ratio: 2 });
    expect(rise).toEqual({ index: 3, ratio: 26 / 12 });
    expect(fall).toEqual({ index: 3, ratio: 26 / 14 });
  });

  it("takes as many neighbours on either side", () => {
    expect(outliers([10, 30, 20, 20, 20]).overTrend).toEqual({ index: 1, ratio: 2 });
  });

  it("leaves the ends alone, which have neighbours on one side only", () => {
    expect(outliers([30, 10, 10, 10, 30]).overTrend).toEqual({ index: 1, ratio: 0.5 });
  });

  it("shows a cliff as a rise", () => {
    expect(outliers([10, 10, 10, 16, 16, 16]).rise).toEqual({ index: 3, ratio: 1.6 });
  });

  it("refuses fewer than three values", () => {
    expect(() => outliers([1, 2])).toThrow(new RangeError("a trend takes at least three values, got 2"));
  });
});
