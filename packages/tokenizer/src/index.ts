export type { ChatMessage, ChatOptions, ToolCall } from "./chat-message.js";
export type { StreamDecoder } from "./stream-decoder.js";
export { type DecodeOptions, type EncodeOptions, Tokenizer } from "./tokenizer.js";
export { type TokenizerConfig, tokenizerConfigFromMetadata } from "./tokenizer-config.js";
export { TokenizerError, type TokenizerErrorCode } from "./tokenizer-error.js";
