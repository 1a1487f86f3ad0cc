import { randomTokens } from "@niwaki/testing";
import type { SharedPrefix } from "./job.js";

/** The same prompts for each engine. */
export function sharedPrompts({ requests, sharedTokens, ownTokens }: SharedPrefix, vocabulary: number) {
  const shared = randomTokens(sharedTokens, vocabulary, 1);
  return Array.from({ length: requests }, (_, index) => ({
    shared,
    own: randomTokens(ownTokens, vocabulary, 10 + index),
  }));
}
