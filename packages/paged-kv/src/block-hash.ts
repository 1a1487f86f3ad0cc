/** Odd constants with well spread bits (from the golden ratio and from MurmurHash3's finalizer). */
const LOW = 0x9e3779b1;
const HIGH = 0x85ebca6b;

/**
 * A 64-bit hash in two int32 lanes, which V8 keeps unboxed. It only has to spread well and to be the same everywhere: what
 * is found by it is compared token by token.
 */
export class BlockHash {
  low = 0;
  high = 0;

  /** Starts a chain with what every hash of it shall depend on. */
  ofText(text: string): void {
    this.low = text.length;
    this.high = ~text.length;
    for (let i = 0; i < text.length; i++) this.#mix(text.charCodeAt(i));
  }

  /** H(parent, tokens): the next link of a chain, over `tokens[start..end - 1]`. */
  ofTokens(parentLow: number, parentHigh: number, tokens: ArrayLike<number>, start: number, end: number): void {
    this.low = parentLow;
    this.high = parentHigh;
    for (let i = start; i < end; i++) this.#mix(tokens[i]!);
  }

  #mix(value: number): void {
    const low = Math.imul(this.low ^ value, LOW);
    const high = Math.imul((this.high ^ (value << 16) ^ (value >>> 16)) + 1, HIGH);
    this.low = low ^ (low >>> 15);
    this.high = high ^ (high >>> 13);
  }
}

/** Both lanes as 16 hexadecimal digits. */
export function hexadecimal(low: number, high: number): string {
  return [high, low].map((lane) => (lane >>> 0).toString(16).padStart(8, "0")).join("");
}
