import { adaptersBenchmark } from "./adapters/adapters.js";
import { cpuBenchmark } from "./cpu/cpu.js";
import { cudaBenchmark } from "./cuda/cuda.js";
import { engineBenchmark } from "./engine/engine.js";
import { loadBenchmark } from "./load/load.js";

/** Each benchmark takes the arguments after its name and says what it measures when it prints. */
const benchmarks: Record<string, (args: string[]) => Promise<void>> = {
  adapters: adaptersBenchmark,
  cpu: cpuBenchmark,
  cuda: cudaBenchmark,
  engine: engineBenchmark,
  load: loadBenchmark,
};

const [name, ...args] = process.argv.slice(2);
const benchmark = benchmarks[name ?? ""];
if (benchmark === undefined) {
  console.error(`usage: npm run bench -- NAME [options]\nbenchmarks: ${Object.keys(benchmarks).join(", ")}`);
  process.exitCode = 2;
} else {
  benchmark(args).catch((error: unknown) => {
    const misused = error instanceof Error && "code" in error && String(error.code).startsWith("ERR_PARSE_ARGS_");
    console.error(misused ? `${name}: ${error.message}` : error);
    process.exitCode = misused ? 2 : 1;
  });
}
