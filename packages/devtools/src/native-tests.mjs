// Builds the kernels with their tests, address and undefined-behavior sanitizers on, and runs them.
import { runCxxTests } from "./cxx-tests.mjs";

runCxxTests({ report: "native-report.json", build: "kernels/build/asan", cmake: ["-DNIWAKI_SANITIZE=ON"] });
