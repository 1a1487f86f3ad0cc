import { describe, expect, it } from "vitest";
import { attendedTokens, CostModel, type StepCost, stepMilliseconds } from "./cost-model.js";
import { random } from "./test-random.js";

/** Decode steps of four rows, and every fourth step a chunk beside them. */
function steps(count: number, next: (limit: number) => number): [rows: number, attended: number][] {
  return Array.from({ length: count }, (_, i) => {
    const decode = 4 * (300 + next(3000));
    if (i % 4 > 0) return [4, decode];
    const start = next(4000);
    const chunk = 16 + next(400);
    return [4 + chunk, decode + attendedTokens(start, start + chunk)];
  });
}

/** How far a prediction is off, relative, at a decode step and at a long chunk. */
function errors(model: CostModel, truth: StepCost): number[] {
  return [
    [4, 4 * 1000],
    [260, attendedTokens(2000, 2256)],
  ].map(([rows, attended]) => {
    const expected = stepMilliseconds(truth, rows!, attended!);
    return Math.abs(stepMilliseconds(model.cost!, rows!, attended!) / expected - 1);
  });
}

const truth: StepCost = { fixed: 12, perToken: 0.25, perContextToken: 0.00005 };

describe("attendedTokens", () => {
  it("sums what each row attends to, itself included", () => {
    expect([attendedTokens(0, 1), attendedTokens(0, 4), attendedTokens(9, 10), attendedTokens(2, 5)]).toEqual([
      1,
      1 + 2 + 3 + 4,
      10,
      3 + 4 + 5,
    ]);
  });
});

describe("CostModel", () => {
  it("finds the cost of a machine without noise", () => {
    const model = new CostModel();
    expect(model.cost).toBeNull();
    for (const [rows, attended] of steps(200, random(1))) {
      model.observe(rows, attended, stepMilliseconds(truth, rows, attended));
    }
    const { fixed, perToken, perContextToken } = model.cost!;
    expect(fixed / truth.fixed).toBeCloseTo(1, 2);
    expect(perToken / truth.perToken).toBeCloseTo(1, 2);
    expect(perContextToken / truth.perContextToken).toBeCloseTo(1, 2);
  });

  it("is off by little with noise of 10% and outliers of 20 times", () => {
    const next = random(2);
    const model = new CostModel();
    for (const [i, [rows, attended]] of steps(400, next).entries()) {
      const noise = 0.95 + next(1000) / 10_000;
      model.observe(rows, attended, stepMilliseconds(truth, rows, attended) * (i % 37 === 36 ? 20 : noise));
    }
    for (const error of errors(model, truth)) expect(error).toBeLessThan(0.08);
  });

  it("follows a machine that slows down or speeds up for good", () => {
    const next = random(3);
    const model = new CostModel();
    const learn = (factor: number, count: number) => {
      for (const [rows, attended] of steps(count, next)) {
        model.observe(rows, attended, factor * stepMilliseconds(truth, rows, attended));
      }
      const { fixed, perToken, perContextToken } = truth;
      return errors(model, {
        fixed: factor * fixed,
        perToken: factor * perToken,
        perContextToken: factor * perContextToken,
      });
    };
    learn(1, 200);
    // Four steps are no accident.
    for (const error of learn(3, 5)) expect(error).toBeLessThan(0.1);
    for (const error of learn(3, 300)) expect(error).toBeLessThan(0.1);
    for (const error of learn(0.5, 300)) expect(error).toBeLessThan(0.1);
  });

  it("takes what it knows of chunks along when decode steps alone become a little slower or faster", () => {
    for (const factor of [1.4, 0.7]) {
      const next = random(7);
      const model = new CostModel();
      for (const [rows, attended] of steps(200, next)) {
        model.observe(rows, attended, stepMilliseconds(truth, rows, attended));
      }
      for (let i = 0; i < 100; i++) {
        const attended = 4 * (300 + next(3000));
        model.observe(4, attended, factor * stepMilliseconds(truth, 4, attended));
      }
      const { fixed, perToken, perContextToken } = truth;
      const slower = { fixed: factor * fixed, perToken: factor * perToken, perContextToken: factor * perContextToken };
      for (const error of errors(model, slower)) expect(error).toBeLessThan(0.1);
    }
  });

  it("does not forget what chunks cost over a long time of decode steps", () => {
    const next = random(4);
    const model = new CostModel();
    for (const [rows, attended] of steps(100, next)) {
      model.observe(rows, attended, stepMilliseconds(truth, rows, attended));
    }
    for (let i = 0; i < 5000; i++) {
      const attended = 4 * (300 + next(3000));
      model.observe(4, attended, stepMilliseconds(truth, 4, attended));
    }
    for (const error of errors(model, truth)) expect(error).toBeLessThan(0.05);
  });

  it("never has a negative term", () => {
    const next = random(5);
    const model = new CostModel();
    for (let i = 0; i < 500; i++) {
      model.observe(1 + next(500), 1 + next(1_000_000), next(100));
      const { fixed, perToken, perContextToken } = model.cost!;
      if (!(fixed >= 0 && perToken >= 0 && perContextToken >= 0)) expect(model.cost).toBe("not negative");
      if (!(fixed + perToken + perContextToken > 0)) expect(model.cost).toBe("not zero");
    }
  });

  it("gives as many rows as fit, and not one more", () => {
    const model = new CostModel();
    for (const [rows, attended] of steps(400, random(6))) {
      model.observe(rows, attended, stepMilliseconds(truth, rows, attended));
    }
    for (const start of [0, 1000, 100_000]) {
      const rows = model.rowsWithin(60, 4, 4000, start, 400);
      const time = (more: number) =>
        stepMilliseconds(model.cost!, 4 + rows + more, 4000 + attendedTokens(start, start + rows + more));
      // Within the two hundredths that are kept for the usual error.
      expect(time(0)).toBeLessThanOrEqual(60 / 1.02);
      expect(time(1)).toBeGreaterThan(60 / 1.03);
    }
    expect(model.rowsWithin(5, 4, 4000, 0, 400)).toBe(0);
    expect(model.rowsWithin(1e9, 4, 4000, 0, 300)).toBe(300);
  });

  it("goes no further than double what was measured", () => {
    const model = new CostModel();
    expect(model.rowsWithin(1e9, 4, 400, 0, 1000)).toBe(2 * 16 - 4);
    for (let i = 0; i < 20; i++) model.observe(50, 5000, 10);
    expect(model.rowsWithin(1e9, 4, 400, 0, 1000)).toBe(2 * 50 - 4);
  });
});
