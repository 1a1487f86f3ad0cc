// Builds the CUDA kernels, build-cuda/libniwaki-cuda.so, where the CUDA toolkit is installed. Nothing else needs it.
import { spawnSync } from "node:child_process";
import { availableParallelism } from "node:os";
import { fileURLToPath } from "node:url";

const TARGET = "niwaki-cuda";
const kernels = fileURLToPath(new URL("../../../kernels", import.meta.url));
const build = fileURLToPath(new URL("../build-cuda", import.meta.url));

const compilers = process.env.CUDACXX ? [process.env.CUDACXX] : ["nvcc", "/usr/local/cuda/bin/nvcc"];
const nvcc = compilers.find((compiler) => spawnSync(compiler, ["--version"]).status === 0);
if (nvcc === undefined) {
  console.log(
    `Nothing was built: the CUDA kernels need nvcc of the CUDA toolkit 13, which is not ${compilers.join(" or ")}. ` +
      "Install the toolkit, or name its compiler in the environment variable CUDACXX. Niwaki runs on the CPU without it.",
  );
} else {
  const options = ["-DNIWAKI_CUDA=ON", "-DCMAKE_BUILD_TYPE=Release", `-DCMAKE_CUDA_COMPILER=${nvcc}`];
  run("cmake", ["-S", kernels, "-B", build, ...options]);
  run("cmake", ["--build", build, "--target", TARGET, "--parallel", String(availableParallelism())]);
  console.log(`${build}/lib${TARGET}.so`);
}

function run(command, args) {
  const { status, error } = spawnSync(command, args, { stdio: "inherit" });
  if (status === 0) return;
  console.error(`${command} ${args.join(" ")} failed${error ? `: ${error.message}` : ""}`);
  process.exit(status ?? 1);
}
