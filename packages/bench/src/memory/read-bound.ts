import { Companion } from "../companion.js";

/**
 * Bytes a second that this many threads can read from memory together when they do nothing else: what bounds decoding,
 * which reads all weights for every token.
 */
export class ReadBound {
  // The kernels keep weights in huge pages, so the bound is measured in them too: glibc asks for them where this is set.
  readonly #reader = new Companion("memory/read", { GLIBC_TUNABLES: "glibc.malloc.hugetlb=1" });
  readonly #threads: number;

  constructor(threads: number) {
    this.#threads = threads;
  }

  measure(): Promise<number> {
    return this.#reader.ask(this.#threads);
  }

  end(): Promise<void> {
    return this.#reader.end();
  }
}
