// Formats all TypeScript and C++, and applies the lint fixes that are safe.
import { formatCxx } from "./cxx-format.mjs";
import { capture, ROOT } from "./process.mjs";

async function main() {
  const biome = await capture(`${ROOT}/node_modules/.bin/biome`, ["check", "--write", "."]);
  const cxx = await formatCxx("-i");
  process.stdout.write(biome.output + cxx.output);
  process.exitCode = biome.code || cxx.code;
}

main();
