import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";
import type { ChatMessage, Tokenizer } from "@niwaki/tokenizer";
import { TrainingError } from "./error.js";

/** A conversation to learn from: every answer of the assistant in it is learned as the answer to what stands before it. */
export interface ChatConversation {
  readonly messages: readonly ChatMessage[];
  /** Tool definitions, passed to the template. */
  readonly tools?: readonly unknown[];
}

/** One answer, as tokens. */
export interface TrainingExample {
  /** The prompt that `generate` would start from, and the answer with its end of turn. */
  readonly ids: Int32Array;
  /** Tokens of the prompt. */
  readonly promptLength: number;
}

export interface ChatDataOptions {
  /** What prompts say of thinking, as in `generate`; the template's default if absent. */
  thinking?: boolean | undefined;
  /** Most tokens of an example. */
  maxTokens: number;
}

/**
 * Reads JSONL: an object `{"messages": […], "tools"?: […]}` on each line; empty lines are passed over.
 *
 * @throws TrainingError `bad-data` with the number of the line; an error of Node.js if the file cannot be read
 */
export async function readChatData(path: string): Promise<ChatConversation[]> {
  const conversations: ChatConversation[] = [];
  const lines = createInterface({ input: createReadStream(path, "utf8"), crlfDelay: Number.POSITIVE_INFINITY });
  let number = 0;
  for await (const line of lines) {
    number++;
    if (line.trim() === "") continue;
    conversations.push(parseLine(line, `${path}, line ${number}`, { path, line: number }));
  }
  return conversations;
}

function parseLine(line: string, where: string, detail: { path: string; line: number }): ChatConversation {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (cause) {
    throw new TrainingError("bad-data", `${where} is not JSON: ${(cause as Error).message}`, detail, { cause });
  }
  const { messages } = (value ?? {}) as Partial<ChatConversation>;
  if (!Array.isArray(messages)) {
    throw new TrainingError("bad-data", `${where} must be an object with an array "messages"`, { ...detail, value });
  }
  return value as ChatConversation;
}

/**
 * The examples of conversations, through the model's own chat template.
 *
 * @throws TrainingError `bad-data` naming the conversation, from 1: no answer in it, too long, messages that the template
 * refuses
 */
export function chatExamples(
  conversations: readonly ChatConversation[],
  tokenizer: Tokenizer,
  options: ChatDataOptions,
): TrainingExample[] {
  const examples: TrainingExample[] = [];
  for (const [index, { messages, tools }] of conversations.entries()) {
    const refuse = (why: string, cause?: unknown) =>
      new TrainingError("bad-data", `conversation ${index + 1}: ${why}`, { line: index + 1 }, { cause });
    const before = examples.length;
    try {
      for (const [turn, { role }] of messages.entries()) {
        if (role === "assistant") examples.push(answerExample(messages.slice(0, turn + 1), tools, tokenizer, options));
      }
    } catch (error) {
      throw refuse((error as Error).message, error);
    }
    if (examples.length === before) throw refuse("it has no message of the assistant to learn");
    for (const { ids } of examples.slice(before)) {
      if (ids.length <= options.maxTokens) continue;
      throw refuse(`it has ${ids.length} tokens, and ${options.maxTokens} are the most; shorten it`);
    }
  }
  if (examples.length === 0) throw new TrainingError("bad-data", "there is nothing to learn: the data are empty");
  return examples;
}

/** The last message as the answer to those before it. */
function answerExample(
  messages: readonly ChatMessage[],
  tools: readonly unknown[] | undefined,
  tokenizer: Tokenizer,
  { thinking }: ChatDataOptions,
): TrainingExample {
  const given = tools === undefined ? {} : { tools };
  const question = messages.slice(0, -1);
  const whole = tokenizer.encodeChat(messages, { ...given, addGenerationPrompt: false });
  const prompt = tokenizer.encodeChat(question, { ...given, ...(thinking === undefined ? {} : { thinking }) });
  // A template may leave the empty thoughts out that it puts into a prompt: then the answer is found without them.
  const start = startsWith(whole, prompt) ? prompt : tokenizer.encodeChat(question, given);
  if (!startsWith(whole, start)) {
    throw new Error("the chat template writes the messages before an answer otherwise once the answer is there");
  }
  const end = whole.findIndex((id, i) => i >= start.length && tokenizer.endOfTurnTokenIds.includes(id));
  if (end < 0) throw new Error("the chat template does not end the assistant's turn");
  const answer = whole.slice(start.length, end + 1);
  return { ids: Int32Array.from([...prompt, ...answer]), promptLength: prompt.length };
}

function startsWith(ids: readonly number[], start: readonly number[]): boolean {
  return start.length < ids.length && start.every((id, i) => ids[i] === id);
}
