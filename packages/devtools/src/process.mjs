import { spawn } from "node:child_process";
import { constants } from "node:os";
import { fileURLToPath } from "node:url";

/** The root of the repository, without a trailing slash. */
export const ROOT = fileURLToPath(new URL("../../..", import.meta.url)).replace(/[/\\]$/, "");

/**
 * Runs a command to its end with no standard input and returns its exit code and its output (stdout and stderr in
 * the order written). A command that cannot be started has code 127.
 */
export function capture(command, args, options = {}) {
  return new Promise((resolve) => {
    const chunks = [];
    const child = spawn(command, args, {
      cwd: ROOT,
      ...options,
      stdio: [options.input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
    });
    child.stdout.on("data", (chunk) => chunks.push(chunk));
    child.stderr.on("data", (chunk) => chunks.push(chunk));
    child.on("error", (error) => resolve({ code: 127, output: `${error.message}\n` }));
    child.on("close", (code, signal) => {
      const note = signal ? `\n${command} was ended by ${signal}\n` : "";
      resolve({ code: exitCode(code, signal), output: Buffer.concat(chunks).toString("utf8") + note });
    });
    if (options.input !== undefined) child.stdin.end(options.input);
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
