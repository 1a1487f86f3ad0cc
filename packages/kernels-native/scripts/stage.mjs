// Copies a binary built on this machine into the package of its platform, to be published with it: the addon, or with the
// argument `cuda` the CUDA kernels.
import { copyFileSync, existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const ADDON = {
  built: "build/Release/niwaki.node",
  script: "build:native",
  packages: { "linux-x64": "linux-x64-gnu" },
};
const CUDA = {
  built: "build-cuda/libniwaki-cuda.so",
  script: "build:cuda",
  packages: { "linux-x64": "linux-x64-cuda" },
};

const { built, script, packages } = process.argv[2] === "cuda" ? CUDA : ADDON;
const platform = `${process.platform}-${process.arch}`;
const suffix = packages[platform];
const source = fileURLToPath(new URL(`../${built}`, import.meta.url));
if (suffix === undefined) {
  console.error(
    `There is no package for ${built} of ${platform}; there is one for ${Object.keys(packages).join(", ")}.`,
  );
  process.exitCode = 1;
} else if (!existsSync(source)) {
  console.error(`${source} is not there: build it with pnpm ${script}.`);
  process.exitCode = 1;
} else {
  const name = built.slice(built.lastIndexOf("/") + 1);
  const target = fileURLToPath(new URL(`../../kernels-native-${suffix}/${name}`, import.meta.url));
  copyFileSync(source, target);
  console.log(`${source} -> ${target}`);
}
