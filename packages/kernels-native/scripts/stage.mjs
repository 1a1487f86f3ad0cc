// Copies the binary built on this machine into the package of its platform, to be published with it.
import { copyFileSync, existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const PACKAGES = { "linux-x64": "kernels-native-linux-x64-gnu" };

const platform = `${process.platform}-${process.arch}`;
const name = PACKAGES[platform];
const built = fileURLToPath(new URL("../build/Release/niwaki.node", import.meta.url));
if (name === undefined) {
  console.error(
    `There is no package for the binaries of ${platform}; there are those of ${Object.keys(PACKAGES).join(", ")}.`,
  );
  process.exitCode = 1;
} else if (!existsSync(built)) {
  console.error(`${built} is not there: build it with pnpm build:native.`);
  process.exitCode = 1;
} else {
  const target = fileURLToPath(new URL(`../../${name}/niwaki.node`, import.meta.url));
  copyFileSync(built, target);
  console.log(`${built} -> ${target}`);
}
