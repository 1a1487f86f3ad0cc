/** In which order examples are learned: all of them, in a new order each time. It depends on the seed alone. */
export class ExampleOrder {
  readonly #count: number;
  readonly #seed: number;
  #epoch = -1;
  #permutation: number[] = [];

  constructor(count: number, seed: number) {
    this.#count = count;
    this.#seed = seed;
  }

  /** Indices of `count` examples from the `first`-th that is learned on. */
  slice(first: number, count: number): number[] {
    return Array.from({ length: count }, (_, i) => this.#at(first + i));
  }

  #at(position: number): number {
    const epoch = Math.floor(position / this.#count);
    if (epoch !== this.#epoch) {
      this.#permutation = shuffled(this.#count, mix(this.#seed, epoch));
      this.#epoch = epoch;
    }
    return this.#permutation[position % this.#count]!;
  }
}

/** 0 … count - 1 in random order (Fisher and Yates). */
function shuffled(count: number, seed: number): number[] {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor((mix(seed, i) / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

/** 32 bits from two numbers, by the finalizer of MurmurHash3. */
function mix(seed: number, index: number): number {
  let h = (seed ^ Math.imul(index + 1, 0x9e3779b9)) | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}
