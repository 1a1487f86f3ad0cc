import { runProgram } from "../run-program.js";

/**
 * Bytes a second that this many threads can read from memory together when they do nothing else: what bounds decoding,
 * which reads all weights for every token.
 */
export function readBound(threads: number): Promise<number> {
  // The kernels keep weights in huge pages, so the bound is measured in them too: glibc asks for them where this is set.
  return runProgram("memory/read", [String(threads)], { GLIBC_TUNABLES: "glibc.malloc.hugetlb=1" });
}
