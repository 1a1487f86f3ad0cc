// For tests: random damage to a file's bytes, the same for the same numbers.

/** Numbers and texts that a careless reader trips over. */
const traps = [0, 1, 2, 3, 8, 41, 255, 2 ** 16, 2 ** 31, 2 ** 32, 2 ** 40, 2 ** 53, 2 ** 63];
const words = [
  "null",
  "-1",
  "1e999",
  "0.5",
  "[]",
  "{}",
  '"x"',
  "true",
  '"(a*)*b"',
  '".*(.*)*_proj"',
  "99999999",
  '"',
  "[[[",
  '"all-linear"',
];

/** A damaged copy of `seed`, one to three times; damage falls into the first `within` bytes. */
export function mutate(seed: Buffer, random: () => number, within: number): Buffer {
  const below = (limit: number) => Math.floor(random() * limit);
  let bytes = Buffer.from(seed);
  const place = () => below(Math.min(within, bytes.length) || 1);
  const damages = [
    () => {
      bytes[place()]! ^= 1 << below(8);
    },
    () => {
      const trap = Buffer.alloc(8);
      trap.writeBigUInt64LE(BigInt(traps[below(traps.length)]!));
      trap.copy(bytes, place(), 0, random() < 0.5 ? 4 : 8);
    },
    () => {
      bytes = Buffer.from(bytes.subarray(0, place()));
    },
    () => {
      const [from, to] = [place(), place()];
      bytes.copyWithin(to, from, from + below(64));
    },
    () => {
      const at = place();
      bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + below(32))]);
    },
    () => {
      // A value of the JSON in the file, its length kept where it can be.
      const text = bytes.toString("latin1", 0, within);
      const values = [...text.matchAll(/[[\s:,](\d+|null|true|false|"[\w.*]+")/g)];
      if (values.length === 0) return;
      const match = values[below(values.length)]!;
      const start = match.index + 1;
      const length = match[1]!.length;
      const word = random() < 0.4 ? String(below(40)) : words[below(words.length)]!;
      const padded = word.length <= length && random() < 0.7 ? word.padEnd(length) : word;
      bytes = Buffer.concat([bytes.subarray(0, start), Buffer.from(padded), bytes.subarray(start + length)]);
    },
  ];
  for (let times = 1 + below(3); times > 0; times--) damages[below(damages.length)]!();
  return bytes;
}
