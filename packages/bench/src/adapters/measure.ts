import { type LoadOptions, Qwen3Model, type StepRecord } from "@niwaki/qwen3-model";
import { randomTokens } from "@niwaki/testing";
import type { AdaptersJob, PairsReport, SwapReport } from "./job.js";
import { decodeMilliseconds, longestInterval } from "./result.js";

const PROMPT_TOKENS = 4;
/** Requests take whole blocks. */
const SPARE_TOKENS = 16;
const CHAT_TOKENS = 1000;
const STEP_TOKENS = 4;

/** Milliseconds of decode steps without and with adapters, in turn; of several, request i has adapter i mod their number. */
export async function measurePairs(job: Extract<AdaptersJob, { measure: "pairs" }>): Promise<PairsReport> {
  const { requests, tokens, rounds } = job.workload;
  const contextLength = PROMPT_TOKENS + tokens + SPARE_TOKENS;
  const { model, steps, answer } = await open(job.path, {
    contextLength,
    kvCacheTokens: requests * contextLength,
    threads: job.threads,
    adapters: { slots: job.adapters.length, type: job.type ?? "f16" },
  });
  for (const [i, path] of job.adapters.entries()) await model.adapters.load(path, { name: String(i) });
  const together = async (seed: number, length: number, adapted: boolean) => {
    steps.length = 0;
    await Promise.all(
      Array.from({ length: requests }, (_, i) => {
        const prompt = randomTokens(PROMPT_TOKENS, model.tokenizer.vocabularySize, requests * seed + i);
        return answer(prompt, length, adapted ? String(i % job.adapters.length) : undefined);
      }),
    );
  };
  const report = { without: [] as number[], with: [] as number[] };
  for (const adapted of [false, true]) await together(0, 4, adapted);
  for (let round = 1; round <= rounds; round++) {
    // Who is first changes, so that neither gains from what else the machine does.
    const turns = round % 2 === 1 ? [false, true] : [true, false];
    for (const adapted of turns) {
      await together(round, tokens, adapted);
      report[adapted ? "with" : "without"].push(decodeMilliseconds(steps, requests));
    }
  }
  await model.dispose();
  return report;
}

/** Answers that each need another adapter than is in a slot, alone and beside an answer that goes on without. */
export async function measureSwaps(job: Extract<AdaptersJob, { measure: "swap" }>): Promise<SwapReport> {
  const { registered, large, slots, rounds } = job.workload;
  const { model, steps, answer } = await open(job.path, {
    contextLength: CHAT_TOKENS + SPARE_TOKENS,
    kvCacheTokens: CHAT_TOKENS + (1 + large) * SPARE_TOKENS,
    threads: job.threads,
    adapters: { slots },
  });
  const registering: number[] = [];
  const inactive: number[] = [];
  const active: number[] = [];
  const plain: number[] = [];
  const beside: number[] = [];
  for (let i = 0; i < registered - large; i++) await model.adapters.load(job.small, { name: `small ${i}` });
  const names = Array.from({ length: large }, (_, i) => `large ${i}`);
  for (const [i, name] of names.entries()) {
    const path = job.adapters[i % job.adapters.length]!;
    registering.push(await milliseconds(() => model.adapters.load(path, { name })));
  }
  const inSlot = (name: string) => model.adapters.list().find((adapter) => adapter.name === name)!.slot !== null;
  // Memory is touched for the first time here: a slot that never held an adapter says nothing of a swap.
  for (const name of names) await answer([1], 1, name);
  for (let round = 0; round < rounds; round++) {
    for (const name of names) {
      if (inSlot(name)) throw new Error(`${name} is in a slot already; ${large} adapters share ${slots}`);
      inactive.push(await milliseconds(() => answer([1], 1, name)));
      active.push(await milliseconds(() => answer([1], 1, name)));
      steps.length = 0;
      await answer([1], STEP_TOKENS);
      plain.push(decodeMilliseconds(steps, 1));
    }
  }
  const leave = new AbortController();
  let chatting = true;
  const chat = answer([2], CHAT_TOKENS, undefined, leave.signal).then(() => {
    chatting = false;
  });
  // Behind this one's only step, the chat is on its way.
  await answer([3], 1);
  for (const name of names) {
    steps.length = 0;
    await answer([1], 1, name);
    if (!chatting) throw new Error(`the chat ended after ${CHAT_TOKENS} tokens, before all adapters were loaded`);
    beside.push(longestInterval(steps));
  }
  leave.abort();
  await chat;
  await model.dispose();
  return { registering, inactive, active, steps: plain, beside };
}

/** A model, its steps as they happen, and an answer of exactly so many tokens. */
async function open(path: string, options: LoadOptions) {
  const steps: StepRecord[] = [];
  // Steps are compared with one another.
  const model = await Qwen3Model.load(path, { ...options, burstMilliseconds: 0, onStep: (step) => steps.push(step) });
  const logitBias = new Map(model.tokenizer.endOfTurnTokenIds.map((id) => [id, Number.NEGATIVE_INFINITY]));
  const answer = async (prompt: readonly number[], maxTokens: number, adapter?: string, signal?: AbortSignal) => {
    const choice = { ...(adapter === undefined ? {} : { adapter }), ...(signal === undefined ? {} : { signal }) };
    for await (const _ of model.generate(prompt, { maxTokens, logitBias, ...choice }));
  };
  return { model, steps, answer };
}

async function milliseconds(run: () => Promise<unknown>): Promise<number> {
  const begun = performance.now();
  await run();
  return performance.now() - begun;
}
