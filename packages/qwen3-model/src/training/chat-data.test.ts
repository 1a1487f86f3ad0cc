import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { demoModelPath } from "@niwaki/demo-model";
import { GgufFile } from "@niwaki/gguf";
import { type ChatMessage, Tokenizer, tokenizerConfigFromMetadata } from "@niwaki/tokenizer";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { exampleRows, microBatches } from "./batch.js";
import { chatExamples, readChatData } from "./chat-data.js";

let folder: string;
let tokenizer: Tokenizer;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "niwaki-chat-data-"));
  tokenizer = new Tokenizer(tokenizerConfigFromMetadata((await GgufFile.open(demoModelPath)).metadata));
});
afterAll(() => rm(folder, { recursive: true }));

async function lines(...content: string[]): Promise<string> {
  const path = join(folder, "data.jsonl");
  await writeFile(path, content.join("\n"));
  return path;
}
const user = (content: string): ChatMessage => ({ role: "user", content });
const assistant = (content: string): ChatMessage => ({ role: "assistant", content });
const good = JSON.stringify({ messages: [user("Hi"), assistant("Hello!")] });

describe("readChatData", () => {
  it("reads a conversation from each line that is not empty", async () => {
    expect(await readChatData(await lines(good, "", `${good}\r`, "  "))).toEqual([JSON.parse(good), JSON.parse(good)]);
  });

  it("tells the number of a bad line", async () => {
    for (const bad of ["{", "[]", "null", "7", '{"messages": {}}', '{"text": "Hi"}']) {
      await expect(readChatData(await lines(good, bad))).rejects.toMatchObject({
        name: "TrainingError",
        code: "bad-data",
        message: expect.stringContaining("line 2"),
        detail: { line: 2 },
      });
    }
  });
});

describe("chatExamples", () => {
  it("has the prompt that generate would start from, and every answer with its end of turn", () => {
    const messages = [user("My name is Tom."), assistant("Hello, Tom!"), user("Who am I?"), assistant("Tom.")];
    for (const thinking of [undefined, true, false]) {
      const examples = chatExamples([{ messages }], tokenizer, { thinking, maxTokens: 100 });
      expect(examples).toHaveLength(2);
      for (const [index, { ids, promptLength }] of examples.entries()) {
        const options = thinking === undefined ? {} : { thinking };
        const prompt = tokenizer.encodeChat(messages.slice(0, 2 * index + 1), options);
        expect([...ids.subarray(0, promptLength)]).toEqual(prompt);
        const answer = tokenizer.decode(ids.subarray(promptLength));
        expect(answer).toBe(`${messages[2 * index + 1]!.content}<|im_end|>`);
      }
    }
  });

  it("refuses what cannot be learned, naming the conversation", () => {
    const refused = (messages: unknown, message: string) =>
      expect(() =>
        chatExamples([{ messages: [user("Hi"), assistant("Hello!")] }, { messages } as never], tokenizer, {
          maxTokens: 30,
        }),
      ).toThrow(message);
    refused([user("Hi")], "conversation 2: it has no message of the assistant");
    refused([], "conversation 2: it has no message of the assistant");
    refused([{ role: "poet", content: "Hi" }, assistant("Hello!")], "conversation 2: messages[0].role");
    refused([{ role: "user", content: 7 }, assistant("Hello!")], "conversation 2: messages[0].content");
    refused([assistant("Hello!")], "conversation 2: messages");
    refused([null, assistant("Hello!")], "conversation 2:");
    refused([user("word ".repeat(50)), assistant("Hello!")], "and 30 are the most");
    expect(() => chatExamples([], tokenizer, { maxTokens: 30 })).toThrow("the data are empty");
  });
});

describe("microBatches", () => {
  const examples = [
    { ids: Int32Array.of(1, 2, 3, 4), promptLength: 2 },
    { ids: Int32Array.of(5, 6, 7), promptLength: 1 },
    { ids: Int32Array.of(8, 9), promptLength: 1 },
  ];

  it("learns the tokens of answers alone, each as much", () => {
    const [batch, ...others] = microBatches(examples, 100, 0);
    expect(others).toEqual([]);
    expect(batch).toEqual({
      tokens: Int32Array.of(1, 2, 3, 5, 6, 8),
      sequences: Int32Array.of(3, 2, 1),
      outputs: Int32Array.of(1, 2, 3, 4, 5),
      targets: Int32Array.of(3, 4, 6, 7, 9),
      weights: new Float32Array(5).fill(0.2),
    });
  });

  it("gives the prompt's tokens their weight", () => {
    const [batch] = microBatches(examples, 100, 0.5);
    expect(batch!.targets).toEqual(Int32Array.of(2, 3, 4, 6, 7, 9));
    expect(batch!.weights).toEqual(Float32Array.of(0.5, 1, 1, 1, 1, 1).map((weight) => weight / 5.5));
  });

  it("cuts a step into batches of no more rows than allowed, whose weights add up to 1", () => {
    for (const maxRows of [3, 4, 5]) {
      const batches = microBatches(examples, maxRows, 0);
      expect(batches.length).toBeGreaterThan(1);
      for (const { tokens } of batches) expect(tokens.length).toBeLessThanOrEqual(maxRows);
      expect(batches.flatMap(({ sequences }) => [...sequences])).toEqual(examples.map(exampleRows));
      const weights = batches.flatMap(({ weights }) => [...weights]);
      expect(weights.reduce((sum, weight) => sum + weight)).toBeCloseTo(1, 6);
    }
  });
});
