import { demoModelPath } from "@niwaki/demo-model";
import { type DemoAnswer, demoAnswers } from "@niwaki/testing";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { Qwen3Model } from "./model.js";
import type { GenerateOptions, Prompt } from "./options.js";

// Where the two best logits are closer than this on the way, another rounding may rightly choose the other.
const NEAR_TIE = 0.05;

describe("the demo model answers as its training code and the float64 reference do", () => {
  let model: Qwen3Model;
  beforeAll(async () => {
    model = await Qwen3Model.load(demoModelPath);
  });
  afterAll(() => model.dispose());

  const outputIds = async (prompt: Prompt, answer: DemoAnswer, options: GenerateOptions = {}) => {
    const ids: number[] = [];
    for await (const piece of model.generate(prompt, { maxTokens: answer.outputIds.length + 8, ...options })) {
      ids.push(...piece.tokens.map((token) => token.id));
    }
    return ids;
  };

  const cases = demoAnswers().map((answer, i) => ({ name: `${i} ${answer.skill}`, answer }));

  it("has all 66 cases", () => {
    expect(cases.length).toBe(66);
    expect(cases.filter(({ answer }) => answer.minMargin > NEAR_TIE).length).toBe(48);
  });

  it.each(cases)("$name: prompt ids", ({ answer }) => {
    expect(model.promptIds(answer.prompt)).toEqual(answer.promptIds);
    if (answer.messages !== null) {
      expect(model.promptIds(answer.messages, { thinking: answer.enableThinking })).toEqual(answer.promptIds);
    }
  });

  it.each(cases.filter(({ answer }) => answer.minMargin > NEAR_TIE))("$name: greedy output", async ({ answer }) => {
    expect(await outputIds(answer.prompt, answer)).toEqual(answer.outputIds);
    if (answer.messages !== null) {
      expect(await outputIds(answer.messages, answer, { thinking: answer.enableThinking })).toEqual(answer.outputIds);
    }
  });

  it("gives the same answers when all are asked at once", async () => {
    const sure = cases.filter(({ answer }) => answer.minMargin > NEAR_TIE);
    const all = await Promise.all(sure.map(({ answer }) => outputIds(answer.prompt, answer)));
    expect(all).toEqual(sure.map(({ answer }) => answer.outputIds));
  });
});
