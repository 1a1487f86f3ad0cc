import type { ArrivingPrompt, CachedPrefix, SharedPrefix, Steps } from "./job.js";

/** How much of everything is measured. */
export interface Workload {
  /** Of block operations and of scheduling. */
  readonly rounds: number;
  readonly steps: Steps;
  readonly shared: SharedPrefix;
  readonly prefix: CachedPrefix;
  readonly arrival: ArrivingPrompt;
}

export const FULL: Workload = {
  rounds: 50,
  steps: { requests: 16, tokens: 512 },
  shared: { requests: 16, sharedTokens: 512, ownTokens: 32, answerTokens: 64 },
  prefix: { prefixTokens: 2000, ownTokens: 16, rounds: 2 },
  arrival: { chats: 4, chatTokens: 2000, promptTokens: 4000, targetSteps: 3 },
};

export const QUICK: Workload = {
  rounds: 10,
  steps: { requests: 16, tokens: 64 },
  shared: { requests: 4, sharedTokens: 128, ownTokens: 16, answerTokens: 16 },
  prefix: { prefixTokens: 500, ownTokens: 16, rounds: 1 },
  arrival: { chats: 4, chatTokens: 500, promptTokens: 500, targetSteps: 3 },
};
