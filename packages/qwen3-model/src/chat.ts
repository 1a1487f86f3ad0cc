import type { ChatMessage } from "@niwaki/tokenizer";
import type { Piece } from "./generation.js";
import type { Qwen3Model } from "./model.js";
import type { GenerateOptions } from "./options.js";

/** A conversation: keeps the messages, and answers each new one over all of them. */
export class Chat {
  readonly #model: Qwen3Model;
  readonly #options: GenerateOptions;
  #messages: ChatMessage[];

  constructor(model: Qwen3Model, options: GenerateOptions & { messages?: readonly ChatMessage[] } = {}) {
    const { messages = [], ...rest } = options;
    this.#model = model;
    this.#options = rest;
    this.#messages = [...messages];
  }

  get messages(): readonly ChatMessage[] {
    return this.#messages;
  }

  /**
   * Streams the answer to a message of the user (or to any message, a tool's result say). When it ends, by itself or by
   * its signal, both become part of the conversation; when it fails, or the consumer leaves early, neither does.
   */
  async *send(message: string | ChatMessage, options: GenerateOptions = {}): AsyncGenerator<Piece, void, undefined> {
    const question: ChatMessage = typeof message === "string" ? { role: "user", content: message } : message;
    const messages = [...this.#messages, question];
    let answer = "";
    for await (const piece of this.#model.generate(messages, { ...this.#options, ...options })) {
      answer += piece.text;
      if (piece.finishReason !== null) this.#messages = [...messages, { role: "assistant", content: answer }];
      yield piece;
    }
  }
}
