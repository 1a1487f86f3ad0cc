/** How every package runs its tests: the report is what `npm test` counts from. */
export default {
  test: {
    reporters: ["default", "json"],
    outputFile: { json: "build/test-report.json" },
    // A busy machine with two cores runs them beside the sanitized build of the kernels.
    testTimeout: 60_000,
    hookTimeout: 60_000,
  },
};
