import { expect, it } from "vitest";
import { countVitest, parseCtest, parseNodeTest, total } from "./counts.mjs";

const file = (status, ...tests) => ({
  name: "a.test.ts",
  status,
  message: status === "failed" ? "Error: broken\n  at a" : "",
  assertionResults: tests.map((test, i) => ({
    fullName: `test ${i}`,
    status: test,
    failureMessages: test === "failed" ? ["Error: 1 is not 2\n  at b"] : [],
  })),
});

it("counts a vitest report, with files that broke outside their tests as failures, and names these", () => {
  const report = {
    numPassedTests: 3,
    numFailedTests: 1,
    numPendingTests: 2,
    numTodoTests: 1,
    testResults: [
      file("passed", "passed", "skipped", "skipped"),
      file("failed", "passed", "failed", "todo"),
      file("failed"),
      file("failed", "passed"),
    ],
  };
  expect(countVitest(report)).toEqual({
    passed: 3,
    failed: 3,
    skipped: 3,
    failures: ["test 1: Error: 1 is not 2", "a.test.ts: Error: broken", "a.test.ts: Error: broken"],
  });
});

it("reads the counts of ctest", () => {
  expect(parseCtest("100% tests passed, 0 tests failed out of 12\n")).toEqual({ passed: 12, failed: 0, skipped: 0 });
  const mixed = [
    "1/3 Test #1: linear ...........   Passed    0.01 sec",
    "2/3 Test #2: cuda .............***Skipped   0.00 sec",
    "3/3 Test #3: rope .............***Failed    0.02 sec",
    "",
    "67% tests passed, 1 tests failed out of 3",
  ];
  expect(parseCtest(mixed.join("\n"))).toEqual({ passed: 1, failed: 1, skipped: 1 });
});

it("finds no counts where ctest ran no test", () => {
  expect(parseCtest("linear.cpp:3:1: error: expected ';'")).toBe(undefined);
});

it("reads the counts of Node's own test runner, as spec and as TAP", () => {
  const lines = ["tests 7", "suites 0", "pass 3", "fail 1", "cancelled 1", "skipped 1", "todo 1", "duration_ms 62.1"];
  const counts = { passed: 3, failed: 2, skipped: 2 };
  expect(parseNodeTest(lines.map((line) => `ℹ ${line}\n`).join(""))).toEqual(counts);
  expect(parseNodeTest(lines.map((line) => `# ${line}\n`).join(""))).toEqual(counts);
  expect(parseNodeTest("> node --test\nSyntaxError: pass 3")).toBe(undefined);
});

it("adds results up", () => {
  const results = [
    { passed: 2, failed: 0 },
    { passed: 1, failed: 3, skipped: 4 },
  ];
  expect(total(results)).toEqual({ passed: 3, failed: 3, skipped: 4 });
});
