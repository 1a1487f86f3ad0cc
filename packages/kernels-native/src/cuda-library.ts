import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { KernelError } from "./error.js";

const require = createRequire(import.meta.url);

/** What the CUDA kernels run on. */
export const cudaNeeds =
  "The CUDA kernels are for Linux on x64 with glibc, and need an NVIDIA GPU of compute capability 9.0 (Hopper: H100, H200) " +
  "and a driver for CUDA 13 (580 or later).";

/**
 * The path of the shared object with the CUDA kernels: the one that the environment variable NIWAKI_CUDA_LIBRARY names, else a
 * build of this checkout, else that of the package, which is installed by those who want it. Throws `unsupported`.
 */
export function cudaLibrary(): string {
  const named = process.env.NIWAKI_CUDA_LIBRARY;
  if (named) return resolve(named);

  const local = fileURLToPath(new URL("../build-cuda/libniwaki-cuda.so", import.meta.url));
  if (existsSync(local)) return local;
  const tried = ["  build-cuda/libniwaki-cuda.so (a build of this checkout): not there"];

  if (`${process.platform}-${process.arch}` === "linux-x64") {
    try {
      return require("@niwaki/kernels-native-linux-x64-cuda") as string;
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      const why = code === "MODULE_NOT_FOUND" ? "not there" : message.split("\n")[0];
      tried.push(`  @niwaki/kernels-native-linux-x64-cuda: ${why}`);
    }
  } else {
    tried.push(`  no package has CUDA kernels for ${process.platform}-${process.arch}`);
  }
  throw new KernelError(
    "unsupported",
    `The CUDA kernels of @niwaki/kernels-native are not there. Tried:\n${tried.join("\n")}\n` +
      `They come in a package of their own: npm install @niwaki/kernels-native-linux-x64-cuda\n` +
      `In a checkout, nvcc builds them: pnpm -C packages/kernels-native build:cuda\n${cudaNeeds}`,
  );
}
