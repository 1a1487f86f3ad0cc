import type { ChatMessage } from "@niwaki/qwen3-model";
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
import { readStandardInput } from "../input.js";
import { load, loadAdapters } from "../load.js";

interface RunFlags extends ModelFlags, AnswerFlags {
  prompt?: string;
  raw?: boolean;
  json?: boolean;
}

export function runCommand(): Command {
  const command = new Command("run")
    .description("Answer one prompt and exit. The answer goes to standard output, everything else to standard error.")
    .option("-p, --prompt <text>", "the prompt; standard input if absent")
    .option("--raw", "continue the prompt as it is, without the chat template")
    .option("--json", "print one JSON object when the answer is complete");
  return addAnswerFlags(addModelFlags(command)).action(run);
}

async function run(flags: RunFlags): Promise<void> {
  const prompt = flags.prompt ?? (await promptFromInput());
  const { model, seconds } = await load(flags.model, loadOptions(flags));
  try {
    const system: ChatMessage[] = flags.system === undefined ? [] : [{ role: "system", content: flags.system }];
    const request = flags.raw ? prompt : [...system, { role: "user" as const, content: prompt }];
    const show = flags.json ? { thinking() {}, answer() {} } : showOnTerminal();
    const options = { ...generateOptions(flags), ...(await loadAdapters(model, flags.lora)) };
    const answer = await streamAnswer((signal) => model.generate(request, { ...options, signal }), show);
    if (flags.json) {
      console.log(JSON.stringify({ ...answer, secondsToLoad: seconds, device: model.device }));
    } else {
      process.stdout.write("\n");
      console.error(`${summary(answer)}, loaded in ${(seconds * 1000).toFixed(0)} ms${onGpu(model)}`);
    }
  } finally {
    await model.dispose();
  }
}

async function promptFromInput(): Promise<string> {
  if (process.stdin.isTTY)
    throw new Error("there is no prompt. Give one with -p, or on standard input; `niwaki chat` opens a conversation.");
  return (await readStandardInput()).replace(/\r?\n$/, "");
}
