/** Says what went wrong in one line on standard error; the exit code is 1. `NIWAKI_DEBUG=1` adds the stack. */
export function report(error: unknown): void {
  const text = error instanceof Error ? error.message : String(error);
  console.error(`niwaki: ${text}`);
  if (process.env.NIWAKI_DEBUG === "1" && error instanceof Error) console.error(error.stack);
  process.exitCode = 1;
}
