import { bytesOfToken } from "./byte-alphabet.js";
import { BytePairEncoder } from "./byte-pair-encoder.js";
import { type ChatMessage, type ChatOptions, chatVariables } from "./chat-message.js";
import { ChatTemplate } from "./chat-template.js";
import { ContentDisguise } from "./content-disguise.js";
import { StreamDecoder, utf8Decoder } from "./stream-decoder.js";
import { type TokenMatch, TokenSplitter } from "./token-splitter.js";
import { tokenType } from "./token-type.js";
import { checkTokenizerConfig, metadataKeys, type TokenizerConfig } from "./tokenizer-config.js";
import { shown, TokenizerError } from "./tokenizer-error.js";

/** How text becomes ids. */
export interface EncodeOptions {
  /** Whether control tokens (`<|im_end|>`) written in the text count as such; false: they are text. Default true. */
  controlTokens?: boolean;
}

/** How ids become text. */
export interface DecodeOptions {
  /** Whether control tokens are left out of the text. Default false. */
  skipControlTokens?: boolean;
}

/** Control tokens that end a turn or a document in every Qwen vocabulary, whatever the template and `eos_token_id` say. */
const qwenEndTokens = ["<|im_end|>", "<|endoftext|>"];

const utf8 = new TextEncoder();
const noBytes = new Uint8Array(0);

/**
 * The tokenizer of a GGUF model: byte-level BPE, chat template and streaming decoder. It holds no state of a model or a
 * conversation; one instance serves any number of requests.
 */
export class Tokenizer {
  /** Number of ids; they go from 0 to this minus 1. */
  readonly vocabularySize: number;
  readonly eosTokenId: number;
  /** The ids that end an answer: EOS and every end-of-turn token of the chat template. */
  readonly endOfTurnTokenIds: readonly number[];
  readonly #config: TokenizerConfig;
  readonly #encoder: BytePairEncoder;
  /** Control and user-defined tokens. */
  readonly #added: TokenSplitter;
  readonly #userDefined: TokenSplitter;
  #chat: { template: ChatTemplate; disguise: ContentDisguise } | undefined;

  /**
   * Builds the lookup structures, once: about half a second for 151,000 tokens.
   *
   * @throws {TokenizerError} `unsupported-model` or `bad-value`, naming the metadata key
   */
  constructor(config: TokenizerConfig) {
    checkTokenizerConfig(config);
    this.#config = config;
    this.vocabularySize = config.tokens.length;
    this.eosTokenId = config.eosTokenId;
    this.#encoder = new BytePairEncoder(config);
    const control = this.#tokensOfType(tokenType.control);
    const userDefined = this.#tokensOfType(tokenType.userDefined);
    this.#added = new TokenSplitter([...control, ...userDefined]);
    this.#userDefined = new TokenSplitter(userDefined);
    this.endOfTurnTokenIds = this.#findEndOfTurn(control);
  }

  /**
   * The ids of a text, after Unicode normalization (NFC). User-defined tokens (`<think>`, `<tool_call>`) are always
   * recognized; the text starts with BOS if the model wants that.
   *
   * @throws {TokenizerError} `wrong-type` unless `text` is a string, `unencodable-text` if the vocabulary lacks a byte
   */
  encode(text: string, options: EncodeOptions = {}): number[] {
    const { addBosToken, bosTokenId } = this.#config;
    const ids = addBosToken ? [bosTokenId!] : [];
    this.#append(ids, text, options.controlTokens ?? true);
    return ids;
  }

  /**
   * The text of the ids, byte for byte; bytes that are not UTF-8 become U+FFFD.
   *
   * @throws {TokenizerError} `bad-token-id` for an id outside the vocabulary
   */
  decode(ids: ArrayLike<number>, options: DecodeOptions = {}): string {
    const pieces = Array.from(ids, (id) => this.#visibleBytes(id, options));
    const bytes = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
    let offset = 0;
    for (const piece of pieces) {
      bytes.set(piece, offset);
      offset += piece.length;
    }
    return utf8Decoder().decode(bytes);
  }

  /** A decoder for ids that come one by one; its pieces join to exactly what {@link decode} gives. */
  stream(options: DecodeOptions = {}): StreamDecoder {
    return new StreamDecoder((id) => this.#visibleBytes(id, options));
  }

  /**
   * The bytes a token adds to a text; they can be part of a UTF-8 character.
   *
   * @throws {TokenizerError} `bad-token-id` for an id outside the vocabulary
   */
  tokenBytes(id: number): Uint8Array {
    const type = this.#typeOf(id);
    const text = this.#config.tokens[id]!;
    const literal = type === tokenType.control || type === tokenType.userDefined || type === tokenType.unused;
    return literal ? utf8.encode(text) : bytesOfToken(text);
  }

  /**
   * The prompt text of a chat, by the model's own template.
   *
   * @throws {TokenizerError} `bad-message`, `bad-option`, `missing-template` or `template-failed`
   */
  renderChat(messages: readonly ChatMessage[], options: ChatOptions = {}): string {
    return this.#render(chatVariables(messages, options));
  }

  /**
   * The prompt ids of a chat. What stands inside messages, tools and template variables is text: a `<|im_end|>` in it
   * does not end the turn, unless `trustContents` is set.
   *
   * @throws {TokenizerError} as {@link renderChat}, and `ambiguous-template` when a message has control tokens and the
   *   template changes its text in such a way that they cannot be told from the template's own
   */
  encodeChat(messages: readonly ChatMessage[], options: ChatOptions = {}): number[] {
    const variables = chatVariables(messages, options);
    const text = this.#render(variables);
    const ids: number[] = [];
    const disguised = options.trustContents ? undefined : this.#compiled().disguise.disguise(variables, text);
    if (disguised === undefined) {
      this.#append(ids, text, true);
      return this.#withBos(ids);
    }
    const hidden = this.#render(disguised.variables);
    const own = this.#controlTokensIn(hidden);
    if (disguised.reveal(hidden) !== text) {
      this.#checkAllOwn(disguised.strings, own, text);
      this.#append(ids, text, true);
      return this.#withBos(ids);
    }
    let start = 0;
    for (const match of own) {
      this.#append(ids, disguised.reveal(hidden.slice(start, match.start)), false);
      ids.push(match.id);
      start = match.end;
    }
    this.#append(ids, disguised.reveal(hidden.slice(start)), false);
    return this.#withBos(ids);
  }

  #visibleBytes(id: number, options: DecodeOptions): Uint8Array {
    const left = options.skipControlTokens === true && this.#typeOf(id) === tokenType.control;
    return left ? noBytes : this.tokenBytes(id);
  }

  #append(ids: number[], text: string, controlTokens: boolean): void {
    if (typeof text !== "string") {
      throw new TokenizerError("wrong-type", `text must be a string, not ${shown(text)}.`, {
        key: "text",
        value: text,
      });
    }
    const plain = (start: number, end?: number): void => {
      for (const id of this.#encoder.encode(text.slice(start, end))) ids.push(id);
    };
    let start = 0;
    for (const match of (controlTokens ? this.#added : this.#userDefined).matches(text)) {
      plain(start, match.start);
      ids.push(match.id);
      start = match.end;
    }
    plain(start);
  }

  /** BOS in front, unless the template wrote it. */
  #withBos(ids: number[]): number[] {
    const { addBosToken, bosTokenId } = this.#config;
    if (addBosToken && ids[0] !== bosTokenId) ids.unshift(bosTokenId!);
    return ids;
  }

  #controlTokensIn(text: string): TokenMatch[] {
    return [...this.#added.matches(text)].filter((match) => this.#typeOf(match.id) === tokenType.control);
  }

  /**
   * The template did something else with disguised messages (it measured or escaped their text). That is harmless as long
   * as no message has a control token.
   */
  #checkAllOwn(strings: readonly string[], own: readonly TokenMatch[], text: string): void {
    const foreign = strings.find((string) => this.#controlTokensIn(string).length > 0);
    const found = this.#controlTokensIn(text);
    const same = found.length === own.length && found.every((match, index) => match.id === own[index]!.id);
    if (foreign === undefined && same) return;
    const message =
      "The chat template changes the text of messages so that control tokens in them cannot be told from its own" +
      `${foreign === undefined ? "" : `; one is in ${shown(foreign)}`}. Remove them, or pass trustContents: true.`;
    throw new TokenizerError("ambiguous-template", message, { value: foreign });
  }

  #render(variables: Readonly<Record<string, unknown>>): string {
    const { bosTokenId, eosTokenId, paddingTokenId, tokens } = this.#config;
    const special: Record<string, unknown> = { eos_token: tokens[eosTokenId] };
    if (bosTokenId !== undefined) special.bos_token = tokens[bosTokenId];
    if (paddingTokenId !== undefined) special.pad_token = tokens[paddingTokenId];
    return this.#compiled().template.render({ ...special, ...variables });
  }

  #compiled(): { template: ChatTemplate; disguise: ContentDisguise } {
    if (this.#chat !== undefined) return this.#chat;
    const { chatTemplate } = this.#config;
    if (chatTemplate === undefined) {
      const message =
        `The model has no chat template (${metadataKeys.chatTemplate}). ` +
        "Give it a plain prompt, or a GGUF of the model's instruct version.";
      throw new TokenizerError("missing-template", message, { key: metadataKeys.chatTemplate });
    }
    const template = new ChatTemplate(chatTemplate);
    const disguise = new ContentDisguise(this.#tokensOfType(tokenType.control), template.literals);
    this.#chat = { template, disguise };
    return this.#chat;
  }

  /** The ids of EOS, of Qwen's own end tokens, and of what the template writes behind an assistant's answer. */
  #findEndOfTurn(control: readonly (readonly [number, string])[]): number[] {
    const ids = new Set([this.eosTokenId]);
    for (const [id, text] of control) if (qwenEndTokens.includes(text)) ids.add(id);
    if (this.#config.chatTemplate !== undefined) {
      const answer = "answer";
      try {
        const turns: ChatMessage[] = [
          { role: "user", content: "question" },
          { role: "assistant", content: answer },
        ];
        const text = this.renderChat(turns, { addGenerationPrompt: false });
        const [end] = this.#controlTokensIn(text.slice(text.lastIndexOf(answer) + answer.length));
        if (end !== undefined) ids.add(end.id);
      } catch (error) {
        // A template that fails is reported where it is used; the model can still continue a plain prompt.
        if (!(error instanceof TokenizerError)) throw error;
      }
    }
    return [...ids];
  }

  #tokensOfType(type: number): [id: number, text: string][] {
    const { tokens, tokenTypes } = this.#config;
    return tokens.flatMap((text, id): [number, string][] => (tokenTypes[id] === type ? [[id, text]] : []));
  }

  #typeOf(id: number): number {
    const type = this.#config.tokenTypes[id];
    if (type !== undefined) return type;
    const message = `${shown(id)} is not a token id; the vocabulary has the ids 0 to ${this.vocabularySize - 1}.`;
    throw new TokenizerError("bad-token-id", message, { value: id });
  }
}
