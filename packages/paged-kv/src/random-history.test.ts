import { describe, expect, it, vi } from "vitest";
import { HostKvStorage } from "./host-storage.js";
import type { PagedKv } from "./paged-kv.js";
import type { Sequence } from "./sequence.js";

const BLOCKS = 20;
const SIZE = 2;
const TOKENS = 3;
const WATERMARK = 3;

/** mulberry32: whole numbers below `n`. */
function generator(seed: number): (n: number) => number {
  let state = seed;
  return (n) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % n;
  };
}

/** Numbers every prefix (extra keys and tokens) once: what K of its last token must be, wherever it stands. */
class Prefixes {
  readonly #numbers = new Map<number, number>();
  readonly #parents = new Map<number, number>();
  #count = 2;

  /** The prefix that goes on with `token`; prefixes 0 and 1 are the empty ones of the two sets of extra keys. */
  next(prefix: number, token: number): number {
    const key = prefix * TOKENS + token;
    const known = this.#numbers.get(key);
    if (known !== undefined) return known;
    this.#numbers.set(key, this.#count);
    this.#parents.set(this.#count, prefix);
    return this.#count++;
  }

  /** Whether `prefix` goes on from `beginning`. */
  follows(prefix: number | undefined, beginning: number): boolean {
    const parent = prefix === undefined ? undefined : this.#parents.get(prefix);
    return parent !== undefined && (parent === beginning || this.follows(parent, beginning));
  }
}

interface Model {
  sequence: Sequence;
  root: number;
  table: number[];
  tokens: number[];
  prefixes: number[];
  writable: boolean;
}

/** The rules written down plainly: arrays for lists, a loop for a search. */
class Oracle {
  readonly references = new Array<number>(BLOCKS).fill(0);
  /** The prefix that a cached block ends, or -1. */
  readonly cached = new Array<number>(BLOCKS).fill(-1);
  free = Array.from({ length: BLOCKS }, (_, block) => block);
  /** Cached blocks, the latest last. */
  stored: number[] = [];
  /** Cached blocks that cannot be found, because no block before them can. */
  readonly lost = new Set<number>();
  readonly prefixes = new Prefixes();
  readonly models: Model[] = [];
  copies = 0;

  /** The block is handed out anew, or written anew by its only holder. */
  uncache(block: number): void {
    const prefix = this.cached[block]!;
    this.cached[block] = -1;
    this.lost.delete(block);
    this.stored = this.stored.filter((other) => other !== block);
    if (this.find(prefix) >= 0) return;
    for (const other of this.stored) if (this.prefixes.follows(this.cached[other], prefix)) this.lost.add(other);
  }

  allocate(model: Model, count: number): void {
    for (const block of this.free.splice(0, count)) {
      if (this.cached[block] !== -1) this.uncache(block);
      this.references[block] = 1;
      model.table.push(block);
    }
  }

  release(blocks: number[]): void {
    const leaving = blocks.filter((block) => --this.references[block]! === 0);
    for (const block of leaving) if (this.cached[block] === -1) this.free.unshift(block);
    for (const block of leaving.toReversed()) if (this.cached[block] !== -1) this.free.push(block);
  }

  find(prefix: number): number {
    return this.stored.findLast((block) => this.cached[block] === prefix && !this.lost.has(block)) ?? -1;
  }

  available(model: Model): number {
    return this.free.length - (model.table.length > 0 || this.free.length === BLOCKS ? 0 : WATERMARK);
  }

  ensureCapacity(model: Model, tokens: number): boolean {
    const missing = Math.max(0, Math.ceil(tokens / SIZE) - model.table.length);
    const index = Math.floor(model.tokens.length / SIZE);
    const tail = model.table[index];
    const mustOwn = tail !== undefined && !model.writable && tokens > model.tokens.length;
    const copies = mustOwn && this.references[tail]! > 1 ? 1 : 0;
    if (missing + copies > 0 && missing + copies > this.available(model)) return false;
    if (mustOwn) {
      model.writable = true;
      if (copies === 1) {
        this.allocate(model, 1);
        model.table[index] = model.table.pop()!;
        this.references[tail]!--;
        this.copies++;
      } else if (this.cached[tail] !== -1) this.uncache(tail);
    }
    this.allocate(model, missing);
    return true;
  }

  match(model: Model, prompt: number[], prefixes: number[], newTokens: number | undefined): number | undefined {
    const { length } = model.tokens;
    if (length !== model.table.length * SIZE) {
      if (newTokens === undefined || this.ensureCapacity(model, Math.min(length + newTokens, prompt.length)))
        return length;
      return undefined;
    }
    const hits: number[] = [];
    for (let end = length + SIZE; end < prompt.length; end += SIZE) {
      const block = this.find(prefixes[end - 1]!);
      if (block < 0) break;
      hits.push(block);
    }
    const reached = length + hits.length * SIZE;
    const room = Math.max(reached, Math.min(reached + (newTokens ?? 0), prompt.length));
    const missing = Math.ceil(room / SIZE) - reached / SIZE;
    const freeHits = hits.filter((block) => this.references[block] === 0).length;
    if (newTokens !== undefined && missing + freeHits > this.available(model)) return undefined;
    for (const block of hits) {
      this.references[block]!++;
      this.free = this.free.filter((other) => other !== block);
      model.table.push(block);
    }
    this.allocate(model, missing);
    model.tokens = prompt.slice(0, reached);
    model.prefixes = prefixes.slice(0, reached);
    return reached;
  }

  append(model: Model, token: number, prefix: number): void {
    model.tokens.push(token);
    model.prefixes.push(prefix);
    if (model.tokens.length % SIZE !== 0) return;
    const block = model.table[model.tokens.length / SIZE - 1]!;
    this.cached[block] = prefix;
    this.stored.push(block);
  }

  truncate(model: Model, length: number): void {
    this.release(model.table.splice(Math.ceil(length / SIZE)));
    model.tokens.length = length;
    model.prefixes.length = length;
    model.writable = length % SIZE === 0;
  }
}

/** Runs `operations` random operations against the oracle; returns how often each thing happened. */
function history(create: () => PagedKv, operations: number, seed: number, rewrites: boolean): Record<string, number> {
  const random = generator(seed);
  const kv = create();
  const oracle = new Oracle();
  const { prefixes } = oracle;
  const counts: Record<string, number> = { hits: 0, refusals: 0, copies: 0, evictions: 0, resets: 0 };
  const key = new Float32Array(1);
  const value = new Float32Array(1);

  const compare = (model: Model): void => {
    const { sequence, table, tokens } = model;
    if (sequence.length !== tokens.length || sequence.blockTable.some((block, i) => block !== table[i])) {
      expect([sequence.length, ...sequence.blockTable]).toEqual([tokens.length, ...table]);
    }
    if (sequence.capacity !== table.length * SIZE) expect(sequence.capacity).toBe(table.length * SIZE);
  };

  for (let operation = 0; operation < operations; operation++) {
    const { models } = oracle;
    const kind = random(22);
    const model = models[random(models.length + 1)];
    if (model === undefined) {
      const root = random(2);
      const sequence = models.length < 6 ? kv.create(root === 0 ? {} : { extraKeys: "adapter" }) : undefined;
      if (sequence) models.push({ sequence, root, table: [], tokens: [], prefixes: [], writable: true });
      continue;
    }
    const { sequence, tokens } = model;
    if (kind < 5) {
      const prompt = [...tokens];
      const numbers = [...model.prefixes];
      // Most prompts begin with a piece of the same long text, so that they find one another's blocks.
      for (let i = random(6 * SIZE); i > 0; i--) {
        const token = random(8) > 0 ? prompt.length % TOKENS : random(TOKENS);
        prompt.push(token);
        numbers.push(prefixes.next(numbers.at(-1) ?? model.root, token));
      }
      const newTokens = random(4) === 0 ? undefined : random(6);
      const expected = oracle.match(model, prompt, numbers, newTokens);
      const got = newTokens === undefined ? sequence.match(prompt) : sequence.match(prompt, newTokens);
      if (got !== expected) expect(got).toBe(expected);
      if (got === undefined) counts.refusals!++;
      else if (got > tokens.length) counts.hits!++;
    } else if (kind < 12) {
      const added = Array.from({ length: 1 + random(3) }, (_, i) => {
        return random(8) > 0 ? (tokens.length + i) % TOKENS : random(TOKENS);
      });
      const fits = oracle.ensureCapacity(model, tokens.length + added.length);
      if (sequence.ensureCapacity(tokens.length + added.length) !== fits) expect(!fits).toBe(fits);
      if (!fits) counts.refusals!++;
      else {
        for (const token of added) {
          const prefix = prefixes.next(model.prefixes.at(-1) ?? model.root, token);
          key[0] = prefix;
          value[0] = -prefix;
          sequence.write(0, tokens.length, key, value);
          oracle.append(model, token, prefix);
        }
        sequence.advance(added);
      }
    } else if (kind === 12) {
      const room = random(3 * SIZE);
      const fits = oracle.ensureCapacity(model, room);
      if (sequence.ensureCapacity(room) !== fits) expect(!fits).toBe(fits);
    } else if (kind < 15 && models.length < 6 && (rewrites || tokens.length % SIZE === 0)) {
      const blocks = model.table.slice(0, Math.ceil(tokens.length / SIZE));
      for (const block of blocks) oracle.references[block]!++;
      models.push({
        ...model,
        sequence: sequence.fork(),
        table: blocks,
        tokens: [...tokens],
        prefixes: [...model.prefixes],
        writable: tokens.length % SIZE === 0,
      });
      compare(models.at(-1)!);
    } else if (kind < 17) {
      const anywhere = random(2) === 0 ? 0 : random(tokens.length + 1);
      const length = rewrites ? anywhere : anywhere - (anywhere % SIZE);
      oracle.truncate(model, length);
      sequence.truncate(length);
    } else if (kind < 19) {
      oracle.truncate(model, 0);
      sequence.drop();
      models.splice(models.indexOf(model), 1);
    } else if (kind < 21) {
      if (tokens.length > 0) {
        const position = random(tokens.length);
        sequence.read(0, position, key, value);
        if (key[0] !== model.prefixes[position] || value[0] !== -key[0]!) {
          expect([position, key[0], value[0]]).toEqual([
            position,
            model.prefixes[position],
            -model.prefixes[position]!,
          ]);
        }
      }
    } else {
      const empty = oracle.free.length === BLOCKS;
      if (kv.reset() !== empty) expect(!empty).toBe(empty);
      if (empty) {
        counts.resets!++;
        oracle.cached.fill(-1);
        oracle.stored = [];
        oracle.lost.clear();
      }
    }
    if (kind < 17 || kind > 18) compare(model);
    // A block is evicted before the blocks that it follows, unless full blocks are written anew.
    if (!rewrites && oracle.lost.size > 0) expect([...oracle.lost]).toEqual([]);
    if (kv.freeBlocks !== oracle.free.length || kv.freeBlocks + kv.usedBlocks !== BLOCKS) {
      expect([kv.freeBlocks, kv.usedBlocks]).toEqual([oracle.free.length, BLOCKS - oracle.free.length]);
    }
    if (operation % 16 === 0) {
      kv.checkIntegrity();
      for (const other of models) compare(other);
    }
  }
  // Nothing that was written may have been overwritten by anybody else.
  for (const { sequence, prefixes: expected } of oracle.models) {
    const read = expected.map((_, position) => {
      sequence.read(0, position, key, value);
      return key[0];
    });
    expect(read).toEqual(expected);
    expect(sequence.tokens()).toHaveLength(expected.length);
    sequence.drop();
  }
  const stats = kv.stats();
  expect(stats.cachedBlocks).toBe(oracle.stored.length);
  expect(stats.copiedBlocks).toBe(oracle.copies);
  counts.copies = oracle.copies;
  counts.evictions = stats.evictedBlocks;
  expect([kv.freeBlocks, kv.sequenceCount, kv.tokenCount, kv.reset()]).toEqual([BLOCKS, 0, 0, true]);
  expect(kv.stats().cachedBlocks).toBe(0);
  kv.checkIntegrity();
  return counts;
}

async function run(episodes: number, operations: number): Promise<Record<string, number>> {
  const module = await import("./paged-kv.js");
  const total: Record<string, number> = {};
  for (let seed = 0; seed < episodes; seed++) {
    const create = () => {
      const storage = new HostKvStorage({ blockCount: BLOCKS, blockSize: SIZE, layerCount: 1, width: 1 });
      return new module.PagedKv({ blockCount: BLOCKS, blockSize: SIZE, storage, watermark: WATERMARK / BLOCKS });
    };
    for (const [name, count] of Object.entries(history(create, operations, seed, seed % 2 === 0))) {
      total[name] = (total[name] ?? 0) + count;
    }
  }
  return total;
}

describe("a random history", () => {
  it("agrees with plain lists, block by block, over 1,000,000 operations and ends empty", {
    timeout: 120_000,
  }, async () => {
    const counts = await run(200, 5000);
    // Whatever can happen did happen, often.
    for (const [name, least] of Object.entries({
      hits: 20_000,
      refusals: 20_000,
      copies: 2000,
      evictions: 100_000,
      resets: 25,
    })) {
      expect(counts[name], name).toBeGreaterThan(least);
    }
  });

  it("agrees also when every hash is the same", { timeout: 60_000 }, async () => {
    vi.resetModules();
    vi.doMock("./block-hash.js", () => ({
      BlockHash: class {
        low = 0;
        high = 0;
        ofText(): void {}
        ofTokens(): void {}
      },
      hexadecimal: () => "",
    }));
    const counts = await run(10, 5000);
    vi.doUnmock("./block-hash.js");
    expect(counts.hits).toBeGreaterThan(1000);
  });
});
