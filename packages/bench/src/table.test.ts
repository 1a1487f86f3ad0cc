import { expect, it, vi } from "vitest";
import { printTable } from "./table.js";

it("prints the first column from the left and the others to the right", () => {
  const log = vi.spyOn(console, "log").mockImplementation(() => {});
  printTable(
    ["", "ours", "ratio"],
    [
      ["decode", "12.0 s", "2"],
      ["load", "1 s", ""],
    ],
  );
  const lines = log.mock.calls.map(([line]) => line);
  log.mockRestore();
  expect(lines).toEqual(["           ours   ratio", "decode   12.0 s       2", "load        1 s"]);
});
