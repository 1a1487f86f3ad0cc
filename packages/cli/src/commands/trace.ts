import { writeFile } from "node:fs/promises";
import { Qwen3Model, type StepRecord } from "@niwaki/qwen3-model";
import { Command } from "commander";
import {
  type AnswerFlags,
  addAnswerFlags,
  addModelFlags,
  generateOptions,
  loadOptions,
  type ModelFlags,
} from "../flags.js";
import { readLines } from "../input.js";
import { loadAdapters } from "../load.js";
import { timeline } from "../timeline.js";

interface TraceFlags extends ModelFlags, AnswerFlags {
  out: string;
  prompt?: string[];
}

export function traceCommand(): Command {
  const command = new Command("trace")
    .description("Answer several prompts at once and write a timeline of every step, for chrome://tracing or Perfetto.")
    .requiredOption("-o, --out <file>", "where the timeline goes, as JSON")
    .option("-p, --prompt <text...>", "the prompts; lines of standard input if absent");
  return addAnswerFlags(addModelFlags(command)).action(trace);
}

async function trace(flags: TraceFlags): Promise<void> {
  const prompts = flags.prompt ?? (await linesOfInput());
  const steps: StepRecord[] = [];
  await using model = await Qwen3Model.load(flags.model, { ...loadOptions(flags), onStep: (step) => steps.push(step) });
  const options = { ...generateOptions(flags), ...(await loadAdapters(model, flags.lora)) };
  const counts = await Promise.all(
    prompts.map(async (content) => {
      const system = flags.system === undefined ? [] : [{ role: "system" as const, content: flags.system }];
      let tokens = 0;
      const messages = [...system, { role: "user" as const, content }];
      for await (const piece of model.generate(messages, options)) tokens += piece.tokens.length;
      return tokens;
    }),
  );
  await writeFile(flags.out, JSON.stringify(timeline(steps, prompts)));
  const { steps: count, overheadMilliseconds } = model.statistics();
  const generated = counts.reduce((sum, tokens) => sum + tokens, 0);
  console.error(
    `${count} steps, ${prompts.length} answers, ${generated} tokens; ` +
      `${(overheadMilliseconds / count).toFixed(3)} ms a step outside the kernels; written to ${flags.out}`,
  );
}

async function linesOfInput(): Promise<string[]> {
  const lines: string[] = [];
  for await (const { line } of readLines()) lines.push(line);
  if (lines.length === 0) throw new Error("there is no prompt. Give some with -p, or one a line on standard input.");
  return lines;
}
