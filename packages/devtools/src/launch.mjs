import { join } from "node:path";
import { ROOT, runInForeground } from "./process.mjs";
import { setUp } from "./set-up.mjs";
import { SetUpError } from "./set-up-error.mjs";

/** Sets the repository up and runs one of its built programs in the foreground; this process exits as it does. */
export async function launch(program, args) {
  try {
    await setUp();
    process.exitCode = await runInForeground(process.execPath, [join(ROOT, program), ...args]);
  } catch (error) {
    if (!(error instanceof SetUpError)) throw error;
    console.error(error.message);
    process.exitCode = 1;
  }
}
