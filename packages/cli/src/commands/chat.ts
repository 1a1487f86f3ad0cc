import { basename } from "node:path";
import { intro, isCancel, log, outro, text } from "@clack/prompts";
import { Command } from "commander";
import { onGpu, showOnTerminal, streamAnswer, summary } from "../answer.js";
import {
  type AnswerFlags,
  addAnswerFlags,
  addModelFlags,
  generateOptions,
  loadOptions,
  type ModelFlags,
} from "../flags.js";
import { readLines } from "../input.js";
import { load, loadAdapters } from "../load.js";
import { report } from "../report.js";

export function chatCommand(): Command {
  const command = new Command("chat").description(
    "Converse. Ctrl-C stops an answer; /clear begins anew; /exit, or Ctrl-C at the prompt, ends.",
  );
  return addAnswerFlags(addModelFlags(command)).action(chat);
}

async function chat(flags: ModelFlags & AnswerFlags): Promise<void> {
  const { model } = await load(flags.model, loadOptions(flags));
  try {
    const messages = flags.system === undefined ? [] : [{ role: "system" as const, content: flags.system }];
    const options = { ...generateOptions(flags), ...(await loadAdapters(model, flags.lora)) };
    const begin = () => model.chat({ ...options, messages });
    const interactive = process.stdin.isTTY && process.stdout.isTTY;
    if (interactive) intro(`${basename(flags.model)} · ${model.contextLength} tokens of context${onGpu(model)}`);
    let conversation = begin();
    for await (const message of interactive ? promptMessages() : inputMessages()) {
      if (message === "/exit") break;
      if (message === "/clear") {
        conversation = begin();
        continue;
      }
      try {
        const answer = await streamAnswer((signal) => conversation.send(message, { signal }), showOnTerminal());
        process.stdout.write("\n");
        if (interactive) log.info(summary(answer));
      } catch (error) {
        // One message that cannot be answered (too long, say) does not end the conversation.
        report(error);
      }
    }
    if (interactive) outro("Bye.");
  } finally {
    await model.dispose();
  }
}

async function* promptMessages(): AsyncGenerator<string> {
  while (true) {
    const message = await text({ message: "You" });
    if (isCancel(message)) return;
    if (message !== undefined && message.trim() !== "") yield message.trim();
  }
}

/** Without a terminal: one message a line, answers on standard output. */
async function* inputMessages(): AsyncGenerator<string> {
  for await (const { line } of readLines()) yield line;
}
