// Builds the CUDA kernels for the emulator, build/Release/libniwaki-cuda.so: with them, tests run on a CPU what a GPU runs. In
// the addon's build folder, whose kernels they share.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const platform = `${process.platform}-${process.arch}`;
if (platform === "linux-x64") {
  const build = fileURLToPath(new URL("../build", import.meta.url));
  run("cmake-js", ["configure", "--CDCMAKE_BUILD_TYPE=Release", "--CDNIWAKI_TESTS=ON", "--log-level", "warn"]);
  run("cmake", ["--build", build, "--config", "Release", "--target", "niwaki-cuda", "--parallel", "2"]);
} else {
  console.log(`Nothing was built: there are no CUDA kernels for ${platform}.`);
}

function run(command, args) {
  const { status, error } = spawnSync(command, args, { stdio: "inherit" });
  if (status === 0) return;
  console.error(`${command} ${args.join(" ")} failed${error ? `: ${error.message}` : ""}`);
  process.exit(status ?? 1);
}
