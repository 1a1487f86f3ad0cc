import { HostKvStorage, PagedKv } from "@niwaki/paged-kv";

const [blockCount, blockSize, layerCount, width] = [8, 4, 2, 2];
const create = () =>
  new PagedKv({ blockCount, blockSize, storage: new HostKvStorage({ blockCount, blockSize, layerCount, width }) });
const kv = create();

/** Computes the tokens that are not cached, as a model would: K and V of each in every layer. */
function compute(sequence, tokens) {
  const cached = sequence.match(tokens);
  if (!sequence.ensureCapacity(tokens.length)) throw new Error("the cache is full");
  for (let position = sequence.length; position < tokens.length; position++) {
    for (let layer = 0; layer < layerCount; layer++) {
      sequence.write(layer, position, Float32Array.of(tokens[position], layer), Float32Array.of(-position, layer));
    }
  }
  sequence.advance(tokens.slice(sequence.length));
  return cached;
}

function show(name, { blockTable, length }, note) {
  console.log(`${name}: blocks [${blockTable}], ${length} tokens, ${note}; ${kv.freeBlocks} blocks free`);
}

const prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9];
const [a, b] = [kv.create(), kv.create()];
show("a", a, `${compute(a, [...prompt, 10])} of them cached`);
show("b", b, `${compute(b, [...prompt, 20])} of them cached`);
const c = a.fork();
compute(c, [...c.tokens(), 30]);
show("c", c, "a fork of a");

const [key, value] = [new Float32Array(width), new Float32Array(width)];
c.read(1, 10, key, value);
console.log(`c, layer 1, position 10: K [${key}], V [${value}]`);

const other = create();
await other.restore(kv.snapshot(a, "example"), "example");
console.log(`another cache finds ${other.create().match(prompt)} tokens of the snapshot of a`);
