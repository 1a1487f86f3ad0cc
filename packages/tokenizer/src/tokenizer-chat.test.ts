import { describe, expect, test } from "vitest";
import type { ChatMessage } from "./chat-message.js";
import { smallConfig, thrownBy } from "./test-support.js";
import { Tokenizer } from "./tokenizer.js";

const small = new Tokenizer(smallConfig());

function withTemplate(chatTemplate: string): Tokenizer {
  return new Tokenizer(smallConfig({ chatTemplate }));
}

describe("templates that work on the text of messages", () => {
  const chat = (content: string): ChatMessage[] => [{ role: "user", content }];

  test("one that cuts and joins contents makes no control token of them", () => {
    const tokenizer = withTemplate("{{ '<|start|>' + messages[0].content.replace('#', '') + '<|end|>' }}");
    expect(tokenizer.renderChat(chat("<|e#nd|>"))).toBe("<|start|><|end|><|end|>");
    expect(tokenizer.encodeChat(chat("<|e#nd|>"))).toEqual([259, ...Buffer.from("<|end|>"), 258]);
  });

  test.each(["EOS", "x", "[-^\\]", "🦊🦊", "\ue000"])("whatever control tokens look like: %s", (end) => {
    const config = smallConfig({ chatTemplate: `{{ messages[0].content.strip() }}${end}` });
    config.tokens[258] = end;
    const text = `a ${end} ${end}`;
    expect(new Tokenizer(config).encodeChat(chat(text))).toEqual([...Buffer.from(text), 258]);
  });

  test("one that measures contents sees their true length", () => {
    const tokenizer = withTemplate("{{ messages[0].content[:7] ~ messages[0].content|length ~ '<|end|>' }}");
    expect(tokenizer.encodeChat(chat("<|end|>!"))).toEqual([...Buffer.from("<|end|>8"), 258]);
  });

  test("one that builds control tokens from pieces", () => {
    const tokenizer = withTemplate("{{ '<|' + variant + '|>' + messages[0].content }}");
    const options = { templateVariables: { variant: "start" } };
    expect(tokenizer.encodeChat(chat("a|<|end|>"), options)).toEqual([259, ...Buffer.from("a|<|end|>")]);
  });

  test("one that escapes contents is fine while they have no control token, and an error when they do", () => {
    const tokenizer = withTemplate("{{ '<|start|>' ~ messages[0].content|tojson(ensure_ascii=true) ~ '<|end|>' }}");
    expect(tokenizer.encodeChat(chat("a|b"))).toEqual([259, ...Buffer.from('"a|b"'), 258]);
    expect(thrownBy(() => tokenizer.encodeChat(chat("a<|end|>")))).toEqual({
      code: "ambiguous-template",
      message:
        "The chat template changes the text of messages so that control tokens in them cannot be told from its own; " +
        'one is in "a<|end|>". Remove them, or pass trustContents: true.',
    });
  });

  test("one that leaves its own end of turn to the message is an error when the message has one", () => {
    const tokenizer = withTemplate(
      "{{ messages[0].content }}{% if not messages[0].content.endswith('<|end|>') %}{{ '<|end|>' }}{% endif %}",
    );
    expect(tokenizer.encodeChat(chat("a|"))).toEqual([97, 124, 258]);
    expect(() => tokenizer.encodeChat(chat("a<|end|>"))).toThrow(/^The chat template changes the text of messages/);
    expect(tokenizer.encodeChat(chat("a<|end|>"), { trustContents: true })).toEqual([97, 258]);
  });
});

describe("options and messages", () => {
  const chat: ChatMessage[] = [{ role: "user", content: "hey" }];

  test("the prompt ends where the answer starts, unless asked otherwise", () => {
    expect(small.renderChat(chat)).toBe("<|start|>user:hey<|end|><|start|>assistant:");
    expect(small.renderChat(chat, { addGenerationPrompt: false })).toBe("<|start|>user:hey<|end|>");
  });

  test("templates see special tokens, variables, and no tools as none", () => {
    const template =
      "{{ [eos_token, bos_token, pad_token, mode, tools is none, enable_thinking is defined] | tojson }}";
    const tokenizer = new Tokenizer(smallConfig({ chatTemplate: template, paddingTokenId: 260 }));
    expect(tokenizer.renderChat(chat, { templateVariables: { mode: "m" } })).toBe(
      '["<|end|>", null, "<|endoftext|>", "m", true, false]',
    );
  });

  test.each<[string, () => unknown, string, string]>([
    [
      "no messages",
      () => small.renderChat([]),
      "bad-message",
      "messages must be an array with at least one message, not [].",
    ],
    [
      "a role",
      () => small.encodeChat([...chat, { role: "robot" as "user", content: "" }]),
      "bad-message",
      'messages[1].role must be one of system, user, assistant, tool, not "robot".',
    ],
    [
      "a content",
      () => small.encodeChat([{ role: "user", content: [] as unknown as string }]),
      "bad-message",
      "messages[0].content must be a string or null, not [].",
    ],
    [
      "tool calls",
      () => small.encodeChat([{ role: "user", tool_calls: {} as [] }]),
      "bad-message",
      "messages[0].tool_calls must be an array, not {}.",
    ],
    [
      "tools",
      () => small.encodeChat(chat, { tools: "x" as unknown as [] }),
      "bad-option",
      'The option tools must be an array, not "x".',
    ],
    [
      "a flag",
      () => small.encodeChat(chat, { thinking: 0 as unknown as boolean }),
      "bad-option",
      "The option thinking must be true or false, not 0.",
    ],
    [
      "a variable",
      () => small.encodeChat(chat, { templateVariables: { tools: [] } }),
      "bad-option",
      "The option templateVariables.tools must be left out: it comes from the messages and options, not [].",
    ],
    [
      "no template",
      () => {
        const { chatTemplate: _, ...config } = smallConfig();
        return new Tokenizer(config).renderChat(chat);
      },
      "missing-template",
      "The model has no chat template (tokenizer.chat_template). Give it a plain prompt, or a GGUF of the model's instruct version.",
    ],
    [
      "an error of the template",
      () => withTemplate("{{ raise_exception('no system role') }}").encodeChat(chat),
      "template-failed",
      "The chat template raised an error: no system role. Check the messages, or render the prompt yourself and encode it.",
    ],
    [
      "a broken template",
      () => withTemplate("{% if %}").encodeChat(chat),
      "template-failed",
      "The chat template does not parse: ",
    ],
  ])("%s", (_name, run, code, message) => {
    const error = thrownBy(run);
    expect(error.code).toBe(code);
    expect(error.message.slice(0, message.length)).toBe(message);
  });
});

describe("endOfTurnTokenIds", () => {
  test("EOS, Qwen's own end tokens, and what the template writes behind an answer", () => {
    expect(small.endOfTurnTokenIds).toEqual([258, 260]);
    expect(new Tokenizer(smallConfig({ eosTokenId: 260 })).endOfTurnTokenIds).toEqual([260, 258]);
  });

  test("without a template, or with one that fails", () => {
    expect(withTemplate("{{ raise_exception('never') }}").endOfTurnTokenIds).toEqual([258, 260]);
    const { chatTemplate: _, ...config } = smallConfig({ eosTokenId: 260 });
    expect(new Tokenizer(config).endOfTurnTokenIds).toEqual([260]);
  });
});
