import { readFileSync } from "node:fs";
import { Command } from "commander";
import { chatCommand } from "./commands/chat.js";
import { doctorCommand } from "./commands/doctor.js";
import { inspectCommand } from "./commands/inspect.js";
import { logitsCommand } from "./commands/logits.js";
import { mergeCommand } from "./commands/merge.js";
import { runCommand } from "./commands/run.js";
import { tokenizeCommand } from "./commands/tokenize.js";
import { traceCommand } from "./commands/trace.js";
import { report } from "./report.js";

/** Runs the `niwaki` command with these arguments, as its program does. Errors go to standard error and the exit code. */
export async function runCli(args: readonly string[]): Promise<void> {
  // A reader that has had enough (`niwaki run | head -1`) is no error.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => process.exit(error.code === "EPIPE" ? 0 : 1));
  const manifest = readFileSync(new URL("../package.json", import.meta.url), "utf8");
  const { version } = JSON.parse(manifest) as { version: string };
  await new Command("niwaki")
    .description("Runs 1-bit and ternary Qwen3 models.")
    .version(version)
    .showHelpAfterError()
    .addCommand(runCommand())
    .addCommand(chatCommand())
    .addCommand(inspectCommand())
    .addCommand(tokenizeCommand())
    .addCommand(logitsCommand())
    .addCommand(traceCommand())
    .addCommand(mergeCommand())
    .addCommand(doctorCommand())
    .parseAsync(args, { from: "user" })
    .catch(report);
}
