import { describe, expect, it } from "vitest";
import { expectedTasks, taskResult } from "./task-results.mjs";

const ran = (exitCode) => ({ cache: { status: "MISS" }, execution: { exitCode } });
const CACHED = { cache: { status: "HIT" } };
const TESTS = { passed: 5, failed: 0, skipped: 0 };

describe("taskResult", () => {
  it("counts the tests of a run and of one that turbo did not need to repeat alike", () => {
    expect(taskResult(ran(0), TESTS, "test")).toEqual({ passed: 5, failed: 0, skipped: 0 });
    expect(taskResult(CACHED, TESTS, "test")).toEqual({ passed: 5, failed: 0, skipped: 0 });
  });

  it("counts a failure that the report does not show", () => {
    expect(taskResult(ran(1), TESTS, "test")).toEqual({ passed: 5, failed: 1, skipped: 0 });
  });

  it("counts a failure that the report does show once", () => {
    expect(taskResult(ran(1), { ...TESTS, failed: 2 }, "test")).toEqual({ passed: 5, failed: 2, skipped: 0 });
  });

  it("counts a missing report and a task that never ran as failures", () => {
    expect(taskResult(ran(0), undefined, "test")).toEqual({ passed: 0, failed: 1, skipped: 0 });
    expect(taskResult(undefined, undefined, "typecheck")).toEqual({ passed: 0, failed: 1, skipped: 0 });
  });

  it("counts a task without a report as one check", () => {
    expect(taskResult(ran(0), undefined, "typecheck")).toEqual({ passed: 1, failed: 0, skipped: 0 });
    expect(taskResult(ran(2), undefined, "typecheck")).toEqual({ passed: 0, failed: 1, skipped: 0 });
  });

  it("counts each check of a package and takes native counts as they are", () => {
    const report = { manifest: true, publint: false, attw: true, require: true };
    expect(taskResult(ran(1), report, "check:package")).toEqual({ passed: 3, failed: 1, skipped: 0 });
    const native = { passed: 7, failed: 0, skipped: 1 };
    expect(taskResult(CACHED, native, "test:native")).toEqual(native);
  });
});

describe("expectedTasks", () => {
  it("wants types, tests and package checks of a public package even if it has no scripts", () => {
    expect(expectedTasks({})).toEqual(["typecheck", "test", "check:package"]);
  });

  it("wants of a private package what it has scripts for", () => {
    const scripts = { build: "x", "test:native": "x", "test:emulated": "x", "test:aarch64": "x" };
    expect(expectedTasks({ private: true, scripts })).toEqual(["test:native", "test:emulated", "test:aarch64"]);
  });

  it("wants nothing of a package that holds a binary of one platform", () => {
    expect(expectedTasks({ os: ["linux"], scripts: { prepack: "x" } })).toEqual([]);
  });
});
