// For tests: random damage to a file's bytes, the same for the same seed.

/** A generator of numbers in [0, 1) (mulberry32). */
export function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let z = Math.imul(state ^ (state >>> 15), state | 1);
    z = (z + Math.imul(z ^ (z >>> 7), z | 61)) ^ z;
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Counts, lengths and offsets that a careless reader trips over. */
const traps = [0, 1, 2, 7, 8, 9, 12, 13, 41, 42, 64, 99, 2 ** 16, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32]
  .map(BigInt)
  .concat([2n ** 40n, 2n ** 53n, 2n ** 53n + 1n, 2n ** 60n, 2n ** 61n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n]);

/**
 * A damaged copy of `seed`, one to four times: flipped bits, overwritten numbers, changed lengths, moved, missing and extra
 * bytes, and a missing end. Damage falls into the first `within` bytes.
 */
export function mutate(seed: Uint8Array, random: () => number, within = seed.length): Buffer {
  const below = (limit: number) => Math.floor(random() * limit);
  let bytes = Buffer.from(seed);
  const place = () => below(Math.min(within, bytes.length) || 1);
  const damages = [
    () => {
      bytes[place()]! ^= 1 << below(8);
    },
    () => {
      bytes[place()] = below(256);
    },
    () => {
      const offset = place();
      const trap = Buffer.alloc(8);
      trap.writeBigUInt64LE(traps[below(traps.length)]!);
      trap.copy(bytes, offset, 0, random() < 0.5 ? 4 : 8);
    },
    () => {
      const offset = place();
      bytes[offset] = bytes[offset]! + below(5) - 2;
    },
    () => {
      bytes = Buffer.from(bytes.subarray(0, place()));
    },
    () => {
      const [from, to] = [place(), place()];
      bytes.copyWithin(to, from, from + below(64));
    },
    () => {
      const offset = place();
      bytes = Buffer.concat([bytes.subarray(0, offset), bytes.subarray(offset + below(32))]);
    },
    () => {
      const [offset, from] = [place(), place()];
      bytes = Buffer.concat([
        bytes.subarray(0, offset),
        bytes.subarray(from, from + below(64)),
        bytes.subarray(offset),
      ]);
    },
  ];
  for (let times = 1 + below(4); times > 0; times--) damages[below(damages.length)]!();
  return bytes;
}
