import { spawn } from "node:child_process";
import { constants } from "node:os";
import { fileURLToPath } from "node:url";

/** The root of the repository, without a trailing slash. */
export const ROOT = fileURLToPath(new URL("../../..", import.meta.url)).replace(/[/\\]$/, "");

/**
 * Runs a command to its end with no standard input and returns its exit code and its output (stdout and stderr in
 * the order written). A command that cannot be started has code 127.
 *
 * @param options those of `spawn`, and `input`: text for its standard input; `stream`: print the output as it comes.
 */
export function capture(command, args, { input, stream = false, ...options } = {}) {
  return new Promise((resolve) => {
    const chunks = [];
    const child = spawn(command, args, {
      cwd: ROOT,
      ...options,
      stdio: [input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
    });
    for (const pipe of [child.stdout, child.stderr]) {
      pipe.on("data", (chunk) => {
        chunks.push(chunk);
        if (stream) process.stdout.write(chunk);
      });
    }
    child.on("error", (error) => resolve({ code: 127, output: `${error.message}\n` }));
    child.on("close", (code, signal) => {
      const note = signal ? `\n${command} was ended by ${signal}\n` : "";
      resolve({ code: exitCode(code, signal), output: Buffer.concat(chunks).toString("utf8") + note });
    });
    // A command may end without reading its input, which is no error of ours.
    child.stdin?.on("error", () => {}).end(input);
  });
}

/**
 * Runs a command on this terminal and returns its exit code. Ctrl-C is the command's business: the terminal sends it
 * to the command too, so this process only waits.
 */
export function runInForeground(command, args) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { stdio: "inherit" });
    const wait = () => {};
    const pass = (signal) => child.kill(signal);
    process.on("SIGINT", wait);
    process.on("SIGTERM", pass);
    process.on("SIGHUP", pass);
    child.on("error", (error) => {
      console.error(`${command}: ${error.message}`);
      resolve(127);
    });
    child.on("close", (code, signal) => {
      process.off("SIGINT", wait);
      process.off("SIGTERM", pass);
      process.off("SIGHUP", pass);
      resolve(exitCode(code, signal));
    });
  });
}

function exitCode(code, signal) {
  return code ?? 128 + (constants.signals[signal] ?? 0);
}
