import { expect, it } from "vitest";
import { capture } from "./process.mjs";

const node = (script, options) => capture(process.execPath, ["-e", script], options);

it("returns the exit code, and stdout and stderr together", async () => {
  const { code, output } = await node("console.log('out'); console.error('err'); process.exitCode = 3");
  expect(code).toBe(3);
  expect(output.split("\n").sort()).toEqual(["", "err", "out"]);
});

it("gives the command its input, or none", async () => {
  const echo = "process.stdin.pipe(process.stdout)";
  expect(await node(echo, { input: "text" })).toEqual({ code: 0, output: "text" });
  expect(await node(echo)).toEqual({ code: 0, output: "" });
});

it("does not mind a command that ends before it read its input", async () => {
  expect(await node("process.exit(0)", { input: "x".repeat(1 << 20) })).toEqual({ code: 0, output: "" });
});

it("has code 127 for a command that is not there", async () => {
  expect(await capture("no-such-command-here", [])).toEqual({
    code: 127,
    output: "spawn no-such-command-here ENOENT\n",
  });
});

it("never takes a command that a signal ended for one that succeeded", async () => {
  const { code, output } = await node("process.kill(process.pid, 'SIGKILL')");
  expect(code).toBe(137);
  expect(output).toBe(`\n${process.execPath} was ended by SIGKILL\n`);
});
