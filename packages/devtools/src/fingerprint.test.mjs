import { mkdirSync, mkdtempSync, rmSync, symlinkSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { contentFingerprint, listFiles, statFingerprint } from "./fingerprint.mjs";

let root;
const write = (path, text = path) => {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  writeFileSync(join(root, path), text);
};

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "fingerprint-"));
});
afterEach(() => rmSync(root, { recursive: true }));

describe("listFiles", () => {
  it("lists files below folders in one order, and leaves out what skip names", () => {
    for (const path of ["b/z.ts", "b/a.ts", "b/node_modules/x.ts", "a.json", "b/c/d.ts"]) write(path);
    const skip = (name) => name === "node_modules" || name === "z.ts";
    expect(listFiles(root, ["b", "a.json", "absent"], skip)).toEqual(["a.json", "b/a.ts", "b/c/d.ts"]);
  });

  it("follows no symbolic links", () => {
    write("a/one.ts");
    symlinkSync(root, join(root, "a/loop"));
    expect(listFiles(root, ["a"])).toEqual(["a/one.ts"]);
  });
});

describe("contentFingerprint", () => {
  const of = (...files) => contentFingerprint(root, files);

  it("is the same for the same contents at another time", () => {
    write("a", "1");
    const before = of("a");
    utimesSync(join(root, "a"), 1, 1);
    expect(of("a")).toBe(before);
  });

  it("changes with a content of the same length", () => {
    write("a", "1");
    const before = of("a");
    write("a", "2");
    expect(of("a")).not.toBe(before);
  });

  it("changes with a name, and with bytes that move from one file to the next", () => {
    write("a", "xy");
    write("b", "z");
    const before = of("a", "b");
    write("c", "xy");
    expect(of("c", "b")).not.toBe(before);
    write("a", "x");
    write("b", "yz");
    expect(of("a", "b")).not.toBe(before);
  });
});

describe("statFingerprint", () => {
  it("changes with the time and with the size of a file", () => {
    write("a", "1");
    utimesSync(join(root, "a"), 1, 1);
    const before = statFingerprint(root, ["a"]);
    utimesSync(join(root, "a"), 1, 2);
    expect(statFingerprint(root, ["a"])).not.toBe(before);
    write("a", "12");
    utimesSync(join(root, "a"), 1, 1);
    expect(statFingerprint(root, ["a"])).not.toBe(before);
  });
});
