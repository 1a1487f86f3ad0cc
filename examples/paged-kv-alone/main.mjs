import { HostKvStorage, PagedKv } from "@niwaki/paged-kv";

const [layerCount, width] = [2, 2];
const storage = new HostKvStorage({ slotCount: 16, layerCount, width });
const kv = new PagedKv({ blockCount: 4, blockSize: 4, storage });

/** Writes K and V of one more token in every layer; false when the cache is full. */
function append(sequence, token) {
  const position = sequence.length;
  if (!sequence.ensureCapacity(position + 1)) return false;
  for (let layer = 0; layer < layerCount; layer++) {
    sequence.write(layer, position, Float32Array.of(token, layer), Float32Array.of(-token, layer));
  }
  sequence.advance(1);
  return true;
}

function show(name, { blockTable, length, capacity }) {
  console.log(`${name}: blocks [${blockTable}], ${length} of ${capacity} tokens; ${100 * kv.utilization}% in use`);
}

const [a, b] = [kv.create(), kv.create()];
for (let token = 1; append(a, token) && append(b, 100 + token); token++);
show("a", a);
show("b", b);

b.drop();
append(a, 9);
show("a", a);

const [key, value] = [new Float32Array(width), new Float32Array(width)];
a.read(1, 8, key, value);
console.log(`a, layer 1, position 8: K [${key}], V [${value}]`);
try {
  a.read(0, 9, key, value);
} catch (error) {
  console.log(`${error.code}: ${error.message}`);
}
