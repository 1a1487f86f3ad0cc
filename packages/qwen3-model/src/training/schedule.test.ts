import { describe, expect, it } from "vitest";
import { ExampleOrder } from "./example-order.js";
import { cosineRate } from "./schedule.js";

describe("cosineRate", () => {
  it("rises over the warm-up and falls along half a cosine", () => {
    const rates = Array.from({ length: 14 }, (_, i) => cosineRate(i + 1, 14, 4, 2));
    expect(rates.slice(0, 5)).toEqual([0.5, 1, 1.5, 2, 2]);
    expect(rates[9]).toBeCloseTo(1, 12); // half way
    for (let i = 5; i < 14; i++) expect(rates[i]!).toBeLessThan(rates[i - 1]!);
    expect(rates[13]!).toBeGreaterThan(0);
    expect(cosineRate(15, 14, 4, 2)).toBeCloseTo(0, 12);
    expect(cosineRate(1, 1, 0, 2)).toBe(2);
  });
});

describe("ExampleOrder", () => {
  it("goes through all examples before any comes again, in another order each time", () => {
    const order = new ExampleOrder(50, 3);
    const epochs = [0, 1, 2].map((epoch) => order.slice(50 * epoch, 50));
    for (const epoch of epochs)
      expect([...epoch].sort((a, b) => a - b)).toEqual(Array.from({ length: 50 }, (_, i) => i));
    expect(epochs[0]).not.toEqual(epochs[1]);
    expect(epochs[1]).not.toEqual(epochs[2]);
  });

  it("depends on the seed and the position alone", () => {
    const all = new ExampleOrder(7, 3).slice(0, 40);
    expect(new ExampleOrder(7, 3).slice(11, 20)).toEqual(all.slice(11, 31));
    expect(new ExampleOrder(7, 4).slice(0, 40)).not.toEqual(all);
  });

  it("puts every example in every place about as often", () => {
    const order = new ExampleOrder(4, 1);
    const counts = Array.from({ length: 16 }, () => 0);
    for (let epoch = 0; epoch < 2000; epoch++) {
      order.slice(4 * epoch, 4).forEach((example, place) => {
        counts[4 * place + example]! += 1;
      });
    }
    for (const count of counts) expect(Math.abs(count - 500)).toBeLessThan(100);
  });
});
