import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { BlockPool, PagedKv } from "@niwaki/paged-kv";
import { randomTokens } from "@niwaki/testing";
import { median } from "../statistics.js";
import type { BlocksReport, OperationCost } from "./job.js";

const BLOCK_COUNT = 8192;
const BLOCK_SIZE = 16;
const PROMPT_TOKENS = 2000;
const POOL_BLOCKS = 128;
/** Few enough that a collection in between, which would hide garbage, is rare; the median is told. */
const OPERATIONS = 20_000;

/** What the operations of a block pool and of sequences take, each with a cache of 8,192 blocks of 16 tokens. */
export function measureBlocks(rounds: number): BlocksReport {
  return { decodeToken: decodeToken(rounds), matchBlock: matchBlock(rounds), allocateBlock: allocateBlock(rounds) };
}

/** Room for one token more, and the token, up to 2,000 tokens of 16 sequences in turn; then all blocks go back. */
function decodeToken(rounds: number): OperationCost {
  const kv = new PagedKv({ blockCount: BLOCK_COUNT, blockSize: BLOCK_SIZE });
  const sequences = Array.from({ length: 16 }, () => kv.create());
  const one = new Int32Array(1);
  let token = 0;
  return cost(rounds, OPERATIONS, () => {
    for (let done = 0; done < OPERATIONS; ) {
      for (const sequence of sequences) {
        if (sequence.length === PROMPT_TOKENS) sequence.truncate(0);
        one[0] = token++ & 0xffff;
        if (!sequence.ensureCapacity(sequence.length + 1)) throw new Error("the cache is full");
        sequence.advance(one);
        done++;
      }
    }
  });
}

/** Takes the cached blocks of a prompt and gives them back. */
function matchBlock(rounds: number): OperationCost {
  const kv = new PagedKv({ blockCount: BLOCK_COUNT, blockSize: BLOCK_SIZE });
  const prompt = randomTokens(PROMPT_TOKENS, 100_000, 1);
  const first = kv.create();
  if (!first.ensureCapacity(PROMPT_TOKENS)) throw new Error("the cache is full");
  first.advance(prompt);
  first.drop();
  const sequence = kv.create();
  const blocks = sequence.match(prompt) / BLOCK_SIZE;
  sequence.truncate(0);
  const prompts = Math.ceil(OPERATIONS / blocks);
  return cost(rounds, prompts * blocks, () => {
    for (let i = 0; i < prompts; i++) {
      sequence.match(prompt);
      sequence.truncate(0);
    }
  });
}

function allocateBlock(rounds: number): OperationCost {
  const pool = new BlockPool({ blockCount: BLOCK_COUNT, blockSize: BLOCK_SIZE });
  const blocks = new Int32Array(POOL_BLOCKS);
  const times = Math.ceil(OPERATIONS / POOL_BLOCKS);
  return cost(rounds, times * POOL_BLOCKS, () => {
    for (let i = 0; i < times; i++) {
      for (let block = 0; block < POOL_BLOCKS; block++) pool.allocateInto(blocks, block, 1);
      for (let block = 0; block < POOL_BLOCKS; block++) pool.free(blocks, block, block + 1);
    }
  });
}

/** Medians over the rounds, once the code is compiled. */
function cost(rounds: number, operations: number, run: () => void): OperationCost {
  setFlagsFromString("--expose-gc");
  const collect = runInNewContext("gc") as () => void;
  for (let i = 0; i < rounds; i++) run();
  const times: number[] = [];
  const bytes: number[] = [];
  for (let i = 0; i < rounds; i++) {
    collect();
    const before = process.memoryUsage().heapUsed;
    const begun = performance.now();
    run();
    const ended = performance.now();
    bytes.push(process.memoryUsage().heapUsed - before);
    times.push(ended - begun);
  }
  // What reading the memory's state leaves is no garbage of the operations.
  const idle: number[] = [];
  for (let i = 0; i < rounds; i++) {
    collect();
    const before = process.memoryUsage().heapUsed;
    performance.now();
    performance.now();
    idle.push(process.memoryUsage().heapUsed - before);
  }
  return {
    nanoseconds: (median(times) * 1e6) / operations,
    garbageBytes: Math.max(0, median(bytes) - median(idle)) / operations,
  };
}
