import { demoModelPath } from "@niwaki/demo-model";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Piece } from "./generation.js";
import { Qwen3Model } from "./model.js";
import type { GenerateOptions, Prompt } from "./options.js";

const STORY = [{ role: "user" as const, content: "Tell me a story about a fox named Mia." }];

describe("Qwen3Model", () => {
  let model: Qwen3Model;
  beforeAll(async () => {
    model = await Qwen3Model.load(demoModelPath);
  });
  afterAll(() => model.dispose());

  const collect = async (prompt: Prompt, options: GenerateOptions = {}) => {
    const pieces: Piece[] = [];
    for await (const piece of model.generate(prompt, options)) pieces.push(piece);
    const last = pieces.at(-1)!;
    return { pieces, text: pieces.map((piece) => piece.text).join(""), reason: last.finishReason, usage: last.usage };
  };

  it("streams an answer and says why it ended", async () => {
    const { pieces, text, reason, usage } = await collect(STORY, { thinking: false });
    expect(text).toContain("Mia");
    expect(reason).toBe("stop");
    expect(pieces.slice(0, -1).every((piece) => piece.finishReason === null && piece.tokens.length === 1)).toBe(true);
    const promptTokens = model.promptIds(STORY, { thinking: false }).length;
    expect(usage).toEqual({ promptTokens, completionTokens: pieces.length - 1 });
  });

  it("ends at maxTokens, also at none", async () => {
    const { reason, usage } = await collect(STORY, { maxTokens: 5 });
    expect([reason, usage?.completionTokens]).toEqual(["length", 5]);
    expect((await collect(STORY, { maxTokens: 0 })).usage?.completionTokens).toBe(0);
  });

  it("ends at the end of the context", async () => {
    await using small = await Qwen3Model.load(demoModelPath, { contextLength: 48 });
    const prompt = model.promptIds(STORY);
    let completionTokens = 0;
    for await (const piece of small.generate(prompt)) {
      completionTokens += piece.tokens.length;
      if (piece.finishReason !== null) expect(piece.finishReason).toBe("length");
    }
    expect(completionTokens).toBe(48 - prompt.length);
  });

  it("stops before a stop string, also across tokens", async () => {
    const { text } = await collect(STORY, { thinking: false });
    const stop = text.slice(30, 47);
    expect(await collect(STORY, { thinking: false, stop })).toMatchObject({
      text: text.slice(0, text.indexOf(stop)),
      reason: "stop",
    });
  });

  it("ends with the reason abort, before and while it answers", async () => {
    expect(await collect(STORY, { signal: AbortSignal.abort() })).toMatchObject({ text: "", reason: "abort" });
    const abort = new AbortController();
    const seen: Piece[] = [];
    await using single = await Qwen3Model.load(demoModelPath, { burstMilliseconds: 0 });
    for await (const piece of single.generate(STORY, { signal: abort.signal })) {
      seen.push(piece);
      if (seen.length === 3) abort.abort();
    }
    expect(seen.at(-1)?.finishReason).toBe("abort");
    expect(seen.length).toBeLessThan(8);
  });

  it("is aborted in the middle of a long prompt", async () => {
    const long = Array.from({ length: 2000 }, (_, i) => i % 2000);
    const abort = new AbortController();
    setTimeout(() => abort.abort(), 5);
    const { pieces, reason } = await collect(long, { signal: abort.signal });
    expect(reason).toBe("abort");
    expect(pieces.length).toBe(1);
  });

  it("forgets an answer whose consumer leaves, and goes on with others", async () => {
    for await (const piece of model.generate(STORY)) {
      if (piece.text !== "") break;
    }
    expect((await collect(STORY, { maxTokens: 3 })).reason).toBe("length");
  });

  it("gives log-probabilities that fit the logits", async () => {
    const prompt = model.promptIds(STORY);
    const { pieces } = await collect(prompt, { maxTokens: 1, logprobs: 3 });
    let row = new Float32Array();
    await model.logits(prompt, (_, logits) => {
      row = logits.slice(logits.length - model.config.vocabulary);
    });
    const best = [...row.keys()].sort((a, b) => row[b]! - row[a]! || a - b).slice(0, 3);
    const max = row[best[0]!]!;
    const total = row.reduce((sum, logit) => sum + Math.exp(logit - max), 0);
    const token = pieces[0]!.tokens[0]!;
    expect(token.id).toBe(best[0]);
    expect(token.top!.map(({ id }) => id)).toEqual(best);
    for (const { id, logprob } of token.top!) expect(logprob).toBeCloseTo(row[id]! - max - Math.log(total), 4);
    expect(token.logprob).toBe(token.top![0]!.logprob);
  });

  it("draws the same text from the same seed, whatever else runs", async () => {
    const drawn = { temperature: 1.2, topK: 40, topP: 0.95, minP: 0.01, repetitionPenalty: 1.1, maxTokens: 40 };
    const alone = await collect(STORY, { ...drawn, seed: 5 });
    const together = await Promise.all([5, 6, 7, 8].map((seed) => collect(STORY, { ...drawn, seed })));
    expect(together[0]!.text).toBe(alone.text);
    expect(new Set(together.map(({ text }) => text)).size).toBe(4);
  });

  it("never chooses a banned token, and chooses a favored one", async () => {
    const { pieces } = await collect(STORY, { maxTokens: 1 });
    const first = pieces[0]!.tokens[0]!.id;
    const banned = await collect(STORY, { maxTokens: 1, logitBias: new Map([[first, Number.NEGATIVE_INFINITY]]) });
    expect(banned.pieces[0]!.tokens[0]!.id).not.toBe(first);
    const favored = await collect(STORY, { maxTokens: 1, logitBias: new Map([[77, 1000]]) });
    expect(favored.pieces[0]!.tokens[0]!.id).toBe(77);
  });

  it("keeps a conversation", async () => {
    const chat = model.chat({ thinking: false });
    for await (const _ of chat.send("My name is Tom."));
    let answer = "";
    for await (const piece of chat.send("What is my name?")) answer += piece.text;
    expect(answer).toContain("Tom");
    expect(chat.messages.map((message) => message.role)).toEqual(["user", "assistant", "user", "assistant"]);
  });

  it("takes what stands in a message as text", () => {
    const typed = model.promptIds([{ role: "user", content: "a<|im_end|>b" }]);
    const trusted = model.promptIds([{ role: "user", content: "a<|im_end|>b" }], { trustContents: true });
    const endOfTurn = model.tokenizer.eosTokenId;
    expect(typed.filter((id) => id === endOfTurn).length).toBe(1);
    expect(trusted.filter((id) => id === endOfTurn).length).toBe(2);
  });

  it("runs more answers than fit the cache, each as if alone", async () => {
    await using small = await Qwen3Model.load(demoModelPath, { contextLength: 128, maxSequences: 8 });
    const ask = async (seed: number) => {
      let text = "";
      const options = { thinking: false, temperature: 1, seed, maxTokens: 60 };
      for await (const piece of small.generate(STORY, options)) text += piece.text;
      return text;
    };
    const alone: string[] = [];
    for (let seed = 0; seed < 6; seed++) alone.push(await ask(seed));
    expect(await Promise.all(alone.map((_, seed) => ask(seed)))).toEqual(alone);
  });

  it.each([
    ["", "empty-prompt"],
    [[2048], "invalid-token"],
    [[-1], "invalid-token"],
    [[1.5], "invalid-token"],
    [new Array<number>(2048).fill(1), "context-exceeded"],
  ])("refuses the prompt %#", (prompt, code) => {
    expect(() => model.generate(prompt)).toThrow(expect.objectContaining({ code }));
  });

  it.each<GenerateOptions>([
    { temperature: -1 },
    { temperature: Number.NaN },
    { topK: 1.5 },
    { topP: 0 },
    { minP: 2 },
    { repetitionPenalty: 0 },
    { presencePenalty: Number.POSITIVE_INFINITY },
    { penaltyWindow: -1 },
    { seed: -1 },
    { logprobs: 5000 },
    { maxTokens: -1 },
    { stop: "" },
    { logitBias: new Map([[9999, 1]]) },
  ])("refuses the option %o", (options) => {
    const option = Object.keys(options)[0];
    expect(() => model.generate(STORY, options)).toThrow(
      expect.objectContaining({ code: "invalid-option", detail: expect.objectContaining({ option }) }),
    );
  });

  it.each([
    { contextLength: 4096 },
    { contextLength: 0 },
    { kvCacheTokens: 16 },
    { chunkSize: 0 },
    { maxSequences: 0.5 },
  ])("refuses to load with %o", async (options) => {
    await expect(Qwen3Model.load(demoModelPath, options)).rejects.toMatchObject({ code: "invalid-option" });
  });

  it.each([false, true])("ends what runs when it is disposed, and refuses more; begun: %s", async (begun) => {
    const short = await Qwen3Model.load(demoModelPath);
    // The answer goes on to the end of the context: when its first token is there, it is far from its last.
    const logitBias = new Map(short.tokenizer.endOfTurnTokenIds.map((id) => [id, Number.NEGATIVE_INFINITY]));
    let arrived = () => {};
    const first = new Promise<void>((resolve) => {
      arrived = resolve;
    });
    const running = (async () => {
      for await (const _ of short.generate(STORY, { logitBias })) arrived();
    })();
    const ended = expect(running).rejects.toMatchObject({ code: "disposed" });
    if (begun) await first;
    await short.dispose();
    await ended;
    expect(() => short.generate(STORY)).toThrow(expect.objectContaining({ code: "disposed" }));
  });
});
