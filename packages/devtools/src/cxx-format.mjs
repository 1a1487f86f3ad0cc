import { createRequire } from "node:module";
import { join } from "node:path";
import { listFiles } from "./fingerprint.mjs";
import { capture, ROOT } from "./process.mjs";
import { workspacePackages } from "./workspace.mjs";

const MADE = new Set(["node_modules", "build", "build-cuda", "dist"]);
const CXX = /\.(cpp|hpp|h|cc|cu|cuh)$/;

/** Runs clang-format with the given options on all of our C++: `{ code, output }`. */
export async function formatCxx(...options) {
  const natives = workspacePackages(ROOT).map(({ folder }) => `${folder}/native`);
  const files = listFiles(ROOT, ["kernels", ...natives], (name) => MADE.has(name)).filter((path) => CXX.test(path));
  if (files.length === 0) return { code: 1, output: "no C++ files were found under kernels/ and packages/*/native\n" };
  const command = clangFormat();
  const { code, output } = await capture(command, [...options, ...files]);
  return { code, output: code === 127 ? `${output}${command} cannot be run on this machine\n` : output };
}

/** The binary of the npm package; it has none for Linux on ARM, where the machine's own (version 15) is used. */
function clangFormat() {
  const { platform, arch } = process;
  if (platform === "linux" && arch !== "x64") return "clang-format";
  const manifest = createRequire(import.meta.url).resolve("clang-format/package.json");
  return join(manifest, `../bin/${platform}_x64/clang-format`);
}
