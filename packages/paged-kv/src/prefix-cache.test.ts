import { describe, expect, it } from "vitest";
import { PagedKv } from "./paged-kv.js";
import type { Sequence } from "./sequence.js";

/**
 * The cases of vLLM's `test_prefix_caching.py` for full attention, with its sizes and its order. Two things differ and change
 * no result: vLLM keeps block 0 for itself as a null block, so its block n + 1 is our block n and its cache of 11 blocks is
 * ours of 10; and vLLM stores a block when it is allocated, we when it is computed.
 */
const SIZE = 16;

const range = (start: number, end: number) => Array.from({ length: end - start }, (_, i) => start + i);
const repeat = (token: number, count: number) => new Array<number>(count).fill(token);
/** Three full blocks that many prompts begin with. */
const COMMON = [0, 1, 2].flatMap((token) => repeat(token, SIZE));

function vllm(blocks: number, options: { events?: boolean } = {}): PagedKv {
  return new PagedKv({ blockCount: blocks - 1, blockSize: SIZE, ...options });
}

/** A whole prompt: what is cached is taken, the rest computed. */
function prefill(kv: PagedKv, prompt: number[], extraKeys?: string): Sequence {
  const sequence = kv.create(extraKeys === undefined ? {} : { extraKeys });
  expect(sequence.match(prompt, prompt.length)).toBeDefined();
  sequence.advance(prompt.slice(sequence.length));
  return sequence;
}

/** The ids that a prompt found, and its new ones. */
function blocksOf(kv: PagedKv, prompt: number[], extraKeys = ""): [hit: number[], added: number[], sequence: Sequence] {
  const before = kv.stats().hitTokens;
  const sequence = prefill(kv, prompt, extraKeys);
  const hits = (kv.stats().hitTokens - before) / SIZE;
  return [[...sequence.blockTable.subarray(0, hits)], [...sequence.blockTable.subarray(hits)], sequence];
}

describe("prefix caching, as in vLLM", () => {
  it("of 11 blocks, a prompt of 55 tokens takes four; one of 53 that shares 48 hits three and adds one", () => {
    const kv = new PagedKv({ blockCount: 11, blockSize: SIZE });
    const [hit, added] = blocksOf(kv, [...COMMON, ...repeat(3, 7)]);
    expect([hit, added]).toEqual([[], [0, 1, 2, 3]]);
    const [hitLater, addedLater] = blocksOf(kv, [...COMMON, ...repeat(3, 5)]);
    expect([hitLater, addedLater, kv.freeBlocks]).toEqual([[0, 1, 2], [4], 6]);
  });

  it("test_prefill: hits while the blocks are used and when they are free, eviction order", () => {
    const kv = vllm(11);
    const [hit0, added0, first] = blocksOf(kv, [...COMMON, ...repeat(3, 7)]);
    expect([hit0, added0]).toEqual([[], [0, 1, 2, 3]]);
    expect(kv.stats().cachedBlocks).toBe(3);
    const [hit1, added1, second] = blocksOf(kv, [...COMMON, ...repeat(3, 5)]);
    expect([hit1, added1, kv.freeBlocks]).toEqual([[0, 1, 2], [4], 5]);

    first.drop();
    second.drop();
    expect(kv.freeBlocks).toBe(10);
    const [hit2, added2, third] = blocksOf(kv, [...COMMON, ...repeat(3, 6)]);
    expect([hit2, added2, kv.freeBlocks]).toEqual([[0, 1, 2], [4], 6]);
    third.drop();

    // Blocks that hold nothing of use first, then the cached ones from the tail.
    const [hit3, added3] = blocksOf(kv, repeat(99, SIZE * 10));
    expect([hit3, added3, kv.freeBlocks]).toEqual([[], [4, 3, 5, 6, 7, 8, 9, 2, 1, 0], 0]);
    kv.checkIntegrity();
  });

  it("test_decode: a block is cached when its last token is computed", () => {
    const kv = vllm(11);
    const sequence = prefill(kv, [...COMMON, ...repeat(3, 7)]);
    const decode = (token: number, count: number): [blocks: number, cached: number] => {
      for (let i = 0; i < count; i++) {
        expect(sequence.ensureCapacity(sequence.length + 1)).toBe(true);
        sequence.advance([token]);
      }
      return [sequence.blockTable.length, kv.stats().cachedBlocks];
    };
    expect(decode(8, 4)).toEqual([4, 3]);
    // 5 fill the fourth block, 14 go into a fifth.
    expect(decode(7, 19)).toEqual([5, 4]);
    const all = [...COMMON, ...repeat(3, 7), ...repeat(8, 4), ...repeat(7, 19)];
    expect([...sequence.tokens()]).toEqual(all);
    expect(kv.create().match(all)).toBe(64);
  });

  it("test_evict: the order of eviction is that of freeing, the tail first", () => {
    const kv = vllm(11);
    const first = prefill(kv, range(0, 87));
    const second = prefill(kv, range(87, 135));
    expect([first.blockTable.length, second.blockTable.length, kv.freeBlocks]).toEqual([6, 3, 1]);
    first.drop();
    second.drop();
    const [hit, added] = blocksOf(kv, range(0, 35));
    expect([hit, added, kv.freeBlocks]).toEqual([[0, 1], [5], 7]);
    const rest = kv.create();
    rest.ensureCapacity(7 * SIZE);
    expect([...rest.blockTable]).toEqual([9, 4, 3, 2, 8, 7, 6]);
  });

  it("test_hash_block_correct_reuse: a block that is handed out anew has no hash", () => {
    const kv = vllm(2);
    prefill(kv, range(0, 16)).drop();
    expect(kv.stats().cachedBlocks).toBe(1);
    const [hit, added] = blocksOf(kv, range(0, 15));
    expect([hit, added, kv.stats().cachedBlocks]).toEqual([[], [0], 0]);
  });

  it("test_computed_blocks_not_evicted: a hit is never handed out as the new block, though it is the next to go", () => {
    const kv = vllm(3);
    const first = prefill(kv, range(0, 16));
    const second = prefill(kv, range(16, 32));
    expect([...first.blockTable, ...second.blockTable]).toEqual([0, 1]);
    first.drop();
    second.drop();
    const [hit, added] = blocksOf(kv, range(0, 32));
    expect([hit, added]).toEqual([[0], [1]]);
  });

  it("test_cache_key_salting: the same tokens under other extra keys are other blocks", () => {
    const kv = vllm(11);
    prefill(kv, [...COMMON, ...repeat(3, 11)], "salt1");
    const later = [...COMMON, ...repeat(4, 11)];
    expect(kv.create({ extraKeys: "salt1" }).match(later)).toBe(48);
    expect(kv.create({ extraKeys: "salt2" }).match(later)).toBe(0);
    expect(kv.create().match(later)).toBe(0);
  });

  it("test_prefill_not_enough_free_blocks_with_computed_blocks: a refusal touches nothing", () => {
    const kv = vllm(11);
    const first = prefill(kv, COMMON);
    const second = prefill(kv, [...COMMON, ...COMMON]);
    const shared = [...second.blockTable];
    expect(shared.slice(0, 3)).toEqual([...first.blockTable]);
    second.drop();
    prefill(kv, repeat(7, 2 * SIZE));
    expect(kv.freeBlocks).toBe(5);
    // Six hits, of which three are free, and three new blocks: six of five.
    const third = kv.create();
    const before = kv.stats();
    expect(third.match([...COMMON, ...COMMON, ...COMMON], 48)).toBeUndefined();
    expect([third.length, third.capacity, kv.stats()]).toEqual([0, 0, before]);
    kv.checkIntegrity();
    // The order of eviction has not changed either: two blocks that were never used, then the free hits from their tail.
    const rest = kv.create();
    rest.ensureCapacity(5 * SIZE);
    expect([...rest.blockTable].slice(2)).toEqual([shared[5], shared[4], shared[3]]);
  });

  it("test_reset_prefix_cache: not while a sequence holds blocks", () => {
    const kv = vllm(11);
    const first = prefill(kv, [...COMMON, ...repeat(3, 7)]);
    const second = prefill(kv, [...COMMON, ...repeat(4, 7)]);
    expect([[...first.blockTable], second.blockTable[3]]).toEqual([[0, 1, 2, 3], 4]);
    expect([kv.reset(), kv.stats().cachedBlocks]).toEqual([false, 3]);
    first.drop();
    second.drop();
    expect([kv.reset(), kv.stats().cachedBlocks]).toEqual([true, 0]);
    expect(kv.create().match([...COMMON, 3])).toBe(0);
    kv.checkIntegrity();
  });

  it("test_maybe_evict_cached_block: of two blocks with the same content one may go", () => {
    const kv = vllm(3);
    const [first, second] = [kv.create(), kv.create()];
    for (const sequence of [first, second]) sequence.ensureCapacity(SIZE);
    for (const sequence of [first, second]) sequence.advance(range(0, SIZE));
    expect([[...first.blockTable], [...second.blockTable], kv.stats().cachedBlocks]).toEqual([[0], [1], 2]);
    first.drop();
    second.drop();
    kv.create().ensureCapacity(SIZE);
    expect(kv.stats().cachedBlocks).toBe(1);
    const third = kv.create();
    expect([third.match(range(0, 17)), [...third.blockTable]]).toEqual([16, [1]]);
    kv.checkIntegrity();
  });

  it("prefix cache statistics: tokens looked up and found, blocks, waste", () => {
    const kv = vllm(11);
    const first = prefill(kv, [...COMMON, ...repeat(3, 7)]);
    const second = prefill(kv, [...COMMON, ...repeat(4, 9)]);
    expect(kv.stats()).toEqual({
      blocks: 10,
      usedBlocks: 5,
      freeBlocks: 5,
      cachedBlocks: 3,
      utilization: 0.5,
      waste: 1 - (48 + 7 + 9) / 80,
      sequences: 2,
      tokens: 112,
      queriedTokens: 112,
      hitTokens: 48,
      hitRate: 48 / 112,
      evictedBlocks: 0,
      copiedBlocks: 0,
    });
    expect([first.length, second.length]).toEqual([55, 57]);
    first.drop();
    second.drop();
    kv.create().ensureCapacity(8 * SIZE);
    const { evictedBlocks, waste, cachedBlocks } = kv.stats();
    expect([evictedBlocks, waste, cachedBlocks]).toEqual([1, 1, 2]);
  });

  it.each([2, 3, 10])("test_kv_cache_events: %i blocks stored, removed and cleared", (count) => {
    const kv = vllm(count + 1, { events: true });
    const compute = () => {
      const sequence = kv.create({ extraKeys: "lora" });
      sequence.ensureCapacity(SIZE * count);
      sequence.advance(range(0, SIZE * count));
      return sequence;
    };
    compute().drop();
    const stored = kv.takeEvents();
    expect(kv.takeEvents()).toEqual([]);
    expect(stored).toHaveLength(count);
    let parent: string | null = null;
    for (const [block, event] of stored.entries()) {
      const tokens = Int32Array.from(range(SIZE * block, SIZE * (block + 1)));
      const hash = expect.stringMatching(/^[0-9a-f]{16}$/);
      expect(event).toEqual({ type: "stored", block, hash, parent, tokens, extraKeys: "lora" });
      if (event.type === "stored") parent = event.hash;
    }
    const hashes = stored.map((event) => (event.type === "stored" ? event.hash : ""));
    expect(new Set(hashes).size).toBe(count);

    // Computed again without a look into the cache: all are removed, the tail first, and stored under the same hashes.
    const again = compute();
    const events = kv.takeEvents();
    expect(events.slice(0, count)).toEqual(
      hashes.map((hash, block) => ({ type: "removed", block, hash })).toReversed(),
    );
    expect(events.slice(count).map((event) => (event.type === "stored" ? event.hash : ""))).toEqual(hashes);
    again.drop();
    kv.reset();
    expect(kv.takeEvents()).toEqual([{ type: "cleared" }]);
  });

  it("keeps no events unless it was asked to", () => {
    const kv = vllm(3);
    prefill(kv, range(0, 16)).drop();
    kv.reset();
    expect(kv.takeEvents()).toEqual([]);
  });
});

describe("hashes", () => {
  const hashes = (extraKeys: string, tokens: number[]) => {
    const kv = new PagedKv({ blockCount: 8, blockSize: 4, events: true });
    prefill(kv, tokens, extraKeys);
    return kv.takeEvents().map((event) => (event.type === "stored" ? event.hash : ""));
  };

  it("depend on the tokens, their order, all tokens before and the extra keys, and on nothing else", () => {
    const tokens = range(0, 8);
    const chain = hashes("", tokens);
    expect(hashes("", tokens)).toEqual(chain);
    const others = [
      hashes("", [1, 0, ...range(2, 8)]),
      hashes("", [0, 1, 2, 9, ...range(4, 8)]),
      hashes("a", tokens),
      hashes("\u0100", tokens),
      hashes("", [-1, ...range(1, 8)]),
      hashes("", [0, 1, 2, 3 + 2 ** 16, ...range(4, 8)]),
    ];
    const all = [...chain, ...others.flat()];
    expect(new Set(all).size).toBe(14);
  });

  it("spread: 20,000 prefixes of small and of large token ids have as many hashes", () => {
    const kv = new PagedKv({ blockCount: 20_000, blockSize: 2, events: true });
    for (const step of [1, 151_936 >> 7]) {
      for (let i = 0; i < 1000; i++) {
        const sequence = kv.create();
        sequence.ensureCapacity(20);
        sequence.advance(range(0, 20).map((j) => step * (j < 2 ? i : j)));
      }
    }
    const found = new Set(kv.takeEvents().map((event) => (event.type === "stored" ? event.hash.slice(8) : "")));
    // Of the low lane alone, which chooses the bucket: 32 bits make one or no collision among so few.
    expect(found.size).toBeGreaterThan(19_980);
  });
});

describe("match", () => {
  it("leaves at least one token to compute, and takes full blocks only", () => {
    const kv = new PagedKv({ blockCount: 8, blockSize: 4 });
    prefill(kv, range(0, 12)).drop();
    const hits = [0, 1, 4, 5, 8, 9, 12, 13, 20].map((length) => {
      const sequence = kv.create();
      const found = sequence.match(range(0, length));
      expect([sequence.length, sequence.capacity]).toEqual([found, found]);
      sequence.drop();
      return found;
    });
    expect(hits).toEqual([0, 0, 0, 4, 4, 8, 8, 12, 12]);
  });

  it("makes room for the next tokens, but not beyond the prompt", () => {
    const kv = new PagedKv({ blockCount: 8, blockSize: 4 });
    prefill(kv, range(0, 8)).drop();
    const capacities = [0, 1, 5, 100].map((newTokens) => {
      const sequence = kv.create();
      expect(sequence.match(range(0, 15), newTokens)).toBe(8);
      const { capacity } = sequence;
      sequence.drop();
      return capacity;
    });
    expect(capacities).toEqual([8, 12, 16, 16]);
  });

  it("goes on where a sequence ends on a block boundary, with what others have computed meanwhile", () => {
    const kv = new PagedKv({ blockCount: 8, blockSize: 4 });
    const prompt = range(0, 18);
    const [first, second] = [kv.create(), kv.create()];
    for (const sequence of [first, second]) {
      sequence.ensureCapacity(4);
      sequence.advance(prompt.slice(0, 4));
    }
    first.ensureCapacity(14);
    first.advance(prompt.slice(4, 14));
    expect(second.match(prompt)).toBe(12);
    expect([[...first.blockTable], [...second.blockTable]]).toEqual([
      [0, 2, 3, 4],
      [1, 2, 3],
    ]);
    // With a block that is not full, or with room that it holds, it stays as it is.
    expect([first.match(prompt), first.match(prompt, 100), first.capacity]).toEqual([14, 14, 20]);
    kv.checkIntegrity();
  });

  it("finds the blocks of a preempted sequence again", () => {
    const kv = new PagedKv({ blockCount: 8, blockSize: 4 });
    const sequence = prefill(kv, range(0, 14));
    const table = [...sequence.blockTable];
    sequence.truncate(0);
    expect(kv.freeBlocks).toBe(8);
    expect([sequence.match(range(0, 14)), [...sequence.blockTable]]).toEqual([12, table.slice(0, 3)]);
  });

  it("leaves the watermark free when a sequence takes its first blocks, unless nothing else is held", () => {
    const kv = new PagedKv({ blockCount: 10, blockSize: 4, watermark: 0.15 });
    const [first, second] = [kv.create(), kv.create()];
    expect(first.match(range(0, 28), 28)).toBe(0);
    expect([second.match(range(100, 108), 8), second.ensureCapacity(8)]).toEqual([undefined, false]);
    expect(second.ensureCapacity(4)).toBe(true);
    // Who runs may take everything.
    expect([second.ensureCapacity(12), kv.freeBlocks]).toEqual([true, 0]);
    first.drop();
    second.drop();
    expect(kv.create().match(range(0, 40), 40)).toBe(0);
    expect(kv.freeBlocks).toBe(0);
  });
});
