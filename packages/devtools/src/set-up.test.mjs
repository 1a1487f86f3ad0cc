import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { setUp } from "./set-up.mjs";
import { SetUpError } from "./set-up-error.mjs";

const STAMP = "node_modules/.niwaki/set-up.json";
const ADDON = "packages/native/build/Release/addon.node";

let root;
let done;
let tools;
let facts;
const write = (path, text = path) => {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  writeFileSync(join(root, path), text);
};
const remove = (path) => rmSync(join(root, path), { recursive: true });

/** Runs a set-up whose install and build only write what the real ones would, and says which of them ran. */
async function run(options = {}) {
  done = [];
  await setUp({ root, facts, find: async () => tools, say: () => {}, ...options });
  return done;
}

beforeEach(async () => {
  root = mkdtempSync(join(tmpdir(), "set-up-"));
  facts = ["v20.19.0"];
  for (const file of ["pnpm-lock.yaml", "turbo.json", "kernels/cpu/linear.cpp", "packages/gguf/src/reader.ts"])
    write(file);
  write("package.json", "{}");
  write("packages/gguf/package.json", "{}");
  write("packages/native/package.json", "{}");
  tools = {
    toolchain: "g++ 12",
    pnpm: "12.0.0",
    install: async () => {
      done.push("install");
      write("node_modules/.modules.yaml");
      write("packages/gguf/node_modules/.bin/tsup");
    },
    build: async () => {
      done.push("build");
      write("packages/gguf/dist/index.js");
      write(ADDON);
    },
    forgetNativeBuilds: () => {
      done.push("forget");
    },
  };
  await run();
});
afterEach(() => rmSync(root, { recursive: true }));

it("installs and builds the first time, and does nothing the second time", async () => {
  expect(done).toEqual(["install", "forget", "build"]);
  expect(await run({ find: () => expect.unreachable("the tools are not looked for") })).toEqual([]);
});

it.each([
  "kernels/cpu/linear.cpp",
  "kernels/cpu/new.cpp",
  "packages/gguf/src/reader.ts",
  "packages/gguf/tsup.config.ts",
  "turbo.json",
])("builds, without installing, when %s changes", async (file) => {
  write(file, "changed");
  expect(await run()).toEqual(["build"]);
  expect(await run()).toEqual([]);
});

it.each(["pnpm-lock.yaml", "package.json", "packages/gguf/package.json", "packages/new/package.json"])(
  "installs and builds when %s changes",
  async (file) => {
    write(file, '{ "name": "other" }');
    expect(await run()).toEqual(["install", "build"]);
    expect(await run()).toEqual([]);
  },
);

it.each(["packages/gguf/src/reader.test.ts", "packages/gguf/README.md", "kernels/tests/linear_test.cpp"])(
  "does nothing when only %s changes",
  async (file) => {
    write(file, "changed");
    expect(await run()).toEqual([]);
  },
);

it("does nothing when a source is changed and changed back", async () => {
  write("packages/gguf/src/reader.ts", "other");
  write("packages/gguf/src/reader.ts");
  expect(await run()).toEqual([]);
});

it.each(["packages/gguf/dist", "packages/gguf/dist/index.js", ADDON])(
  "builds again when %s is deleted",
  async (path) => {
    remove(path);
    expect(await run()).toEqual(["build"]);
  },
);

it("builds again when an output was written by something else", async () => {
  write("packages/gguf/dist/index.js", "half a fil");
  expect(await run()).toEqual(["build"]);
});

it("installs again when a package's node_modules is deleted", async () => {
  remove("packages/gguf/node_modules");
  expect(await run()).toEqual(["install", "build"]);
});

it("does everything again when node_modules is deleted", async () => {
  remove("node_modules");
  expect(await run()).toEqual(["install", "forget", "build"]);
});

it("does everything again under another version of Node.js", async () => {
  facts = ["v22.12.0"];
  expect(await run()).toEqual(["install", "build"]);
});

it("makes new native builds with another compiler, which only a fresh look sees", async () => {
  tools.toolchain = "g++ 13";
  expect(await run()).toEqual([]);
  expect(await run({ fresh: true })).toEqual(["forget", "build"]);
  expect(await run({ fresh: true })).toEqual([]);
});

it.each(["install", "build"])("leaves no stamp when the %s fails, even one of an earlier success", async (step) => {
  write("pnpm-lock.yaml", "other");
  const works = tools[step];
  tools[step] = async () => {
    throw new SetUpError("it failed");
  };
  await expect(run()).rejects.toThrow("it failed");
  expect(existsSync(join(root, STAMP))).toBe(false);
  tools[step] = works;
  write("pnpm-lock.yaml");
  expect(await run()).toEqual(["install", "forget", "build"]);
});

it("sees what was edited while it built", async () => {
  write("kernels/cpu/linear.cpp", "one");
  const build = tools.build;
  tools.build = async () => {
    await build();
    write("kernels/cpu/linear.cpp", "two");
  };
  expect(await run()).toEqual(["build"]);
  tools.build = build;
  expect(await run()).toEqual(["build"]);
  expect(await run()).toEqual([]);
});

it("takes a stamp that cannot be read for none", async () => {
  write(STAMP, '{"install":');
  expect(await run()).toEqual(["install", "forget", "build"]);
});
