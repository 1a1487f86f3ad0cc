import { shown, TokenizerError } from "./tokenizer-error.js";

/**
 * One message of a chat, in the shape of OpenAI's API. Fields that are not named here go to the template as they are.
 */
export interface ChatMessage {
  role: "system" | "user" | "assistant" | "tool";
  /** The text; null (beside tool calls) is an empty one. */
  content?: string | null;
  /** What the assistant thought; templates show it for the last turns only. */
  reasoning_content?: string | null;
  /** The tools that the assistant called. */
  tool_calls?: ToolCall[];
  /** In a tool's message: the call it answers. */
  tool_call_id?: string;
  name?: string;
  [field: string]: unknown;
}

/** A tool call of the assistant; `arguments` is an object, or JSON text that is put into the prompt as it is. */
export interface ToolCall {
  id?: string;
  type?: "function";
  function: { name: string; arguments: string | Record<string, unknown> };
}

/** How a chat becomes a prompt. */
export interface ChatOptions {
  /** Tool definitions (JSON schema in OpenAI's shape), passed through to the template. */
  tools?: readonly unknown[];
  /** Whether the model may think before it answers; left out, the template decides. */
  thinking?: boolean;
  /** Whether the prompt ends where the assistant's answer starts. Default true. */
  addGenerationPrompt?: boolean;
  /** Whether control tokens written inside messages and tools count as such. Default false: they are text. */
  trustContents?: boolean;
  /** More variables for the template. */
  templateVariables?: Readonly<Record<string, unknown>>;
}

const roles: readonly string[] = ["system", "user", "assistant", "tool"];

/** The variables that come from messages and options; `templateVariables` cannot replace them. */
const ownVariables = ["messages", "tools", "add_generation_prompt"];

/**
 * What the template sees of a chat: `messages`, `tools`, `add_generation_prompt`, `enable_thinking`.
 *
 * @throws {TokenizerError} `bad-message` or `bad-option`, naming the message and the field
 */
export function chatVariables(messages: readonly ChatMessage[], options: ChatOptions): Record<string, unknown> {
  if (!Array.isArray(messages) || messages.length === 0) {
    const message = `messages must be an array with at least one message, not ${shown(messages)}.`;
    throw new TokenizerError("bad-message", message, { key: "messages", value: messages });
  }
  if (options.tools !== undefined && !Array.isArray(options.tools)) throw badOption("tools", options.tools, "an array");
  for (const name of ["thinking", "addGenerationPrompt", "trustContents"] as const) {
    const value = options[name];
    if (value !== undefined && typeof value !== "boolean") throw badOption(name, value, "true or false");
  }
  const taken = ownVariables.find((name) => Object.hasOwn(options.templateVariables ?? {}, name));
  if (taken !== undefined) {
    const value = options.templateVariables?.[taken];
    throw badOption(`templateVariables.${taken}`, value, "left out: it comes from the messages and options");
  }
  const thinking = options.thinking === undefined ? {} : { enable_thinking: options.thinking };
  return {
    ...options.templateVariables,
    ...thinking,
    messages: messages.map(checkedMessage),
    // Null and not undefined: templates ask `tools is not none`.
    tools: options.tools ?? null,
    add_generation_prompt: options.addGenerationPrompt ?? true,
  };
}

function checkedMessage(message: ChatMessage, index: number): ChatMessage {
  if (typeof message !== "object" || message === null) throw badMessage(`messages[${index}]`, message, "an object");
  if (!roles.includes(message.role)) {
    throw badMessage(`messages[${index}].role`, message.role, `one of ${roles.join(", ")}`);
  }
  for (const field of ["content", "reasoning_content"] as const) {
    const value = message[field];
    if (value != null && typeof value !== "string") {
      throw badMessage(`messages[${index}].${field}`, value, "a string or null");
    }
  }
  if (message.tool_calls != null && !Array.isArray(message.tool_calls)) {
    throw badMessage(`messages[${index}].tool_calls`, message.tool_calls, "an array");
  }
  // Templates search the content for tags, which fails on null.
  return { ...message, content: message.content ?? "" };
}

function badMessage(key: string, value: unknown, wanted: string): TokenizerError {
  return new TokenizerError("bad-message", `${key} must be ${wanted}, not ${shown(value)}.`, { key, value });
}

function badOption(key: string, value: unknown, wanted: string): TokenizerError {
  return new TokenizerError("bad-option", `The option ${key} must be ${wanted}, not ${shown(value)}.`, { key, value });
}
