import { type LoadOptions, Qwen3Model } from "@niwaki/qwen3-model";
import { randomTokens } from "@niwaki/testing";
import { median } from "../statistics.js";
import type {
  ArrivalReport,
  ArrivingPrompt,
  CachedPrefix,
  PrefixReport,
  SharedPrefix,
  SharedReport,
  Steps,
  StepsReport,
} from "./job.js";
import { quantiles } from "./quantiles.js";
import { StepRecorder } from "./recorder.js";
import { sharedPrompts } from "./shared-prompts.js";

const STEPS_PROMPT_TOKENS = 16;
/** Requests take whole blocks. */
const SPARE_TOKENS = 16;
const CHAT_PROMPT_TOKENS = 64;
const PLAIN_TOKENS = 24;

/** A model and an answer of exactly so many tokens to a prompt; `arrived` is called for each. */
async function open(path: string, options: LoadOptions) {
  const model = await Qwen3Model.load(path, options);
  const logitBias = new Map(model.tokenizer.endOfTurnTokenIds.map((id) => [id, Number.NEGATIVE_INFINITY]));
  const answer = async (prompt: readonly number[], maxTokens: number, arrived?: () => void, signal?: AbortSignal) => {
    for await (const piece of model.generate(prompt, { maxTokens, logitBias, ...(signal ? { signal } : {}) })) {
      if (piece.tokens.length > 0) arrived?.();
    }
  };
  const vocabulary = model.tokenizer.vocabularySize;
  const prompt = (tokens: number, seed: number) => randomTokens(tokens, vocabulary, seed);
  await answer(prompt(4, 0), 4);
  return { model, answer, prompt };
}

/** Requests that decode together for many steps. */
export async function measureSteps(path: string, threads: number, { requests, tokens }: Steps): Promise<StepsReport> {
  const recorder = new StepRecorder();
  const contextLength = STEPS_PROMPT_TOKENS + tokens + SPARE_TOKENS;
  const { model, answer, prompt } = await open(path, {
    contextLength,
    kvCacheTokens: requests * contextLength,
    threads,
    // What a step costs by itself.
    burstMilliseconds: 0,
    onStep: recorder.onStep,
  });
  const together = (seed: number) =>
    Promise.all(
      Array.from({ length: requests }, (_, index) => answer(prompt(STEPS_PROMPT_TOKENS, seed + index), tokens)),
    );
  await together(100);
  recorder.clear();
  await together(200);
  await model.dispose();
  return recorder.report(requests);
}

/** All requests at once; what they share is computed once without being asked for. */
export async function measureShared(path: string, threads: number, workload: SharedPrefix): Promise<SharedReport> {
  const { requests, sharedTokens, ownTokens, answerTokens } = workload;
  const recorder = new StepRecorder();
  const contextLength = sharedTokens + ownTokens + answerTokens + SPARE_TOKENS;
  const { model, answer } = await open(path, {
    contextLength,
    kvCacheTokens: requests * contextLength,
    threads,
    onStep: recorder.onStep,
  });
  const prompts = sharedPrompts(workload, model.tokenizer.vocabularySize);
  const begun = performance.now();
  await Promise.all(
    prompts.map(async ({ shared, own }) => {
      let tokens = 0;
      await answer([...shared, ...own], answerTokens, () => tokens++);
      if (tokens !== answerTokens) throw new Error(`an answer has ${tokens} tokens, not ${answerTokens}`);
    }),
  );
  const seconds = (performance.now() - begun) / 1000;
  await model.dispose();
  return { seconds, steps: recorder.report(requests) };
}

/** Time to first token of prompts that are new, and of such whose beginning others had. */
export async function measurePrefix(path: string, threads: number, workload: CachedPrefix): Promise<PrefixReport> {
  const { prefixTokens, ownTokens, rounds } = workload;
  const contextLength = prefixTokens + ownTokens + SPARE_TOKENS;
  const { model, answer, prompt } = await open(path, {
    contextLength,
    kvCacheTokens: 2 * contextLength,
    threads,
  });
  const firstToken = async (tokens: readonly number[]) => {
    const begun = performance.now();
    await answer(tokens, 1);
    return (performance.now() - begun) / 1000;
  };
  const cold: number[] = [];
  const cached: number[] = [];
  for (let round = 1; round <= rounds; round++) {
    const prefix = prompt(prefixTokens, 1000 + round);
    for (let i = 0; i < 4; i++) {
      const seconds = await firstToken([...prefix, ...prompt(ownTokens, 2000 + 10 * round + i)]);
      (i === 0 ? cold : cached).push(seconds);
    }
  }
  await model.dispose();
  return { cold: median(cold), cached: median(cached) };
}

/** Times between the tokens of chats while a long prompt is computed beside them within a target. */
export async function measureArrival(path: string, threads: number, workload: ArrivingPrompt): Promise<ArrivalReport> {
  const { chats, chatTokens, promptTokens, targetSteps } = workload;
  const contextLength = promptTokens + SPARE_TOKENS;
  const options = {
    contextLength,
    kvCacheTokens: contextLength + chats * (CHAT_PROMPT_TOKENS + chatTokens + SPARE_TOKENS),
    threads,
  };

  const recorder = new StepRecorder();
  const plain = await open(path, { ...options, onStep: recorder.onStep });
  await Promise.all(
    Array.from({ length: chats }, (_, chat) => plain.answer(plain.prompt(CHAT_PROMPT_TOKENS, chat + 1), PLAIN_TOKENS)),
  );
  const decodeStep = recorder.report(chats).kernel.p50;
  await plain.model.dispose();

  const target = targetSteps * decodeStep;
  const steps = new StepRecorder();
  const { model, answer, prompt } = await open(path, { ...options, targetMilliseconds: target, onStep: steps.onStep });
  const gaps: number[] = [];
  const running = new Set<number>();
  const leave = new AbortController();
  let prompting = false;
  let startPrompt = () => {};
  const started = new Promise<void>((resolve) => {
    startPrompt = resolve;
  });
  const answers = Array.from({ length: chats }, async (_, chat) => {
    let tokens = 0;
    let last = 0;
    await answer(
      prompt(CHAT_PROMPT_TOKENS, chat + 1),
      chatTokens,
      () => {
        const now = performance.now();
        if (prompting) gaps.push(now - last);
        last = now;
        if (++tokens === PLAIN_TOKENS) running.add(chat);
        if (running.size === chats) startPrompt();
      },
      leave.signal,
    );
    if (!leave.signal.aborted)
      throw new Error(`a chat ended after ${chatTokens} tokens, before the prompt was computed`);
  });
  await Promise.race([started, Promise.all(answers)]);
  const begun = performance.now();
  prompting = true;
  steps.clear();
  await answer(prompt(promptTokens, 99), 1);
  prompting = false;
  const promptSeconds = (performance.now() - begun) / 1000;
  const stepCount = steps.length;
  leave.abort();
  await Promise.all(answers);
  await model.dispose();
  return { decodeStep, target, betweenTokens: quantiles(gaps), promptSeconds, steps: stepCount };
}
