import { expect, it } from "vitest";
import { cliArguments } from "./start-arguments.mjs";

const SAMPLE = ["-p", "Tell me a story about a fox named Mia."];

it.each([["-p", "Hi"], ["--prompt", "Hi"], ["--prompt=Hi"], ["-pHi"]])("answers a prompt: %s", (...args) => {
  expect(cliArguments([...args, "--temp", "0"], true)).toEqual(["run", ...args, "--temp", "0"]);
  expect(cliArguments(args, false)).toEqual(["run", ...args]);
});

it("opens a chat on a terminal", () => {
  expect(cliArguments([], true)).toEqual(["chat"]);
  expect(cliArguments(["-m", "own.gguf"], true)).toEqual(["chat", "-m", "own.gguf"]);
});

it("answers the sample prompt without a terminal, with any model", () => {
  expect(cliArguments([], false)).toEqual(["run", ...SAMPLE]);
  expect(cliArguments(["-m", "own.gguf"], false)).toEqual(["run", ...SAMPLE, "-m", "own.gguf"]);
});
