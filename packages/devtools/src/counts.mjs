/**
 * The counts of a vitest JSON report, and what each failure is: `{ passed, failed, skipped, failures }`. A file that
 * failed before any of its tests could be counted (an import that throws, a failing hook) is one failure.
 */
export function countVitest(report) {
  const failures = report.testResults.flatMap(({ name, status, message, assertionResults }) => {
    const failed = assertionResults.filter((test) => test.status === "failed");
    if (status === "failed" && failed.length === 0) return [`${name}: ${firstLine(message)}`];
    return failed.map(({ fullName, failureMessages }) => `${fullName}: ${firstLine(failureMessages?.[0])}`);
  });
  return {
    passed: report.numPassedTests,
    failed: failures.length,
    skipped: report.numPendingTests + report.numTodoTests,
    failures,
  };
}

function firstLine(message = "") {
  return message.split("\n", 1)[0];
}

/** The counts of ctest's closing lines, or undefined when the output has none (it never got to run a test). */
export function parseCtest(output) {
  const total = /tests passed, (\d+) tests? failed out of (\d+)/.exec(output);
  if (!total) return undefined;
  const failed = Number(total[1]);
  const skipped = (output.match(/^\s*\d+\/\d+ Test .*\*\*\*(Skipped|Not Run)/gm) ?? []).length;
  return { passed: Number(total[2]) - failed - skipped, failed, skipped };
}

/** The counts that Node's own test runner prints at its end (`ℹ pass 3` or `# pass 3`), or undefined without them. */
export function parseNodeTest(output) {
  const count = (...names) => {
    const found = names.map((name) => new RegExp(`^(?:.*: )?[#ℹ] ${name} (\\d+)$`, "m").exec(output));
    return found.every(Boolean) ? found.reduce((sum, match) => sum + Number(match[1]), 0) : undefined;
  };
  const passed = count("pass");
  const failed = count("fail", "cancelled");
  const skipped = count("skipped", "todo");
  return passed === undefined || failed === undefined || skipped === undefined
    ? undefined
    : { passed, failed, skipped };
}

/** The sum of results, each `{ passed, failed, skipped? }`. */
export function total(results) {
  const sum = { passed: 0, failed: 0, skipped: 0 };
  for (const { passed, failed, skipped = 0 } of results) {
    sum.passed += passed;
    sum.failed += failed;
    sum.skipped += skipped;
  }
  return sum;
}
