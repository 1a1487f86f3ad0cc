import { expect, it } from "vitest";
import { Entry } from "./entry.js";
import { Client } from "./fair-queue.js";
import { StepDraft } from "./step-plan.js";

it("takes back all that a preempted request had in the step", () => {
  const client = new Client<string>(undefined, 0);
  const [prompt, decode] = ["a", "b"].map((name, i) => new Entry(name, 10, i, client, 0, 0)) as [
    Entry<string>,
    Entry<string>,
  ];
  decode.computedTokens = 10;
  decode.totalTokens = 11;
  const draft = new StepDraft<string>(20).begin(1);
  const counts = () => [draft.tokens, draft.decodeRows, draft.promptRows, draft.attended, draft.room];
  draft.add(decode, 1);
  draft.add(prompt, 4);
  expect(counts()).toEqual([5, 1, 4, 11 + 1 + 2 + 3 + 4, 15]);
  draft.preempt(decode);
  expect(counts()).toEqual([4, 0, 4, 10, 16]);
  draft.preempt(prompt);
  expect(counts()).toEqual([0, 0, 0, 0, 20]);
  expect(draft.finish()).toMatchObject({ number: 1, chunks: [], tokens: 0, preempted: ["b", "a"] });
});
