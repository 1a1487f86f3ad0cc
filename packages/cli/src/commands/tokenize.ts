import { once } from "node:events";
import { GgufFile } from "@niwaki/gguf";
import { Tokenizer, tokenizerConfigFromMetadata } from "@niwaki/tokenizer";
import { Command } from "commander";
import { readLines } from "../input.js";

export function tokenizeCommand(): Command {
  return new Command("tokenize")
    .description("Read JSON strings, one a line, from standard input and write the token ids of each as a JSON array.")
    .argument("<model>", "a GGUF file")
    .option("--plain", "take control tokens in the strings as text")
    .action(tokenize);
}

async function tokenize(path: string, flags: { plain?: boolean }): Promise<void> {
  const file = await GgufFile.open(path);
  const tokenizer = new Tokenizer(tokenizerConfigFromMetadata(file.metadata));
  for await (const { line, number } of readLines()) {
    const ids = tokenizer.encode(readString(line, number), { controlTokens: !flags.plain });
    if (!process.stdout.write(`${JSON.stringify(ids)}\n`)) await once(process.stdout, "drain");
  }
}

function readString(line: string, number: number): string {
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    throw new Error(`line ${number} of standard input is not JSON: ${(error as Error).message}`);
  }
  if (typeof value !== "string") throw new Error(`line ${number} of standard input is not a JSON string.`);
  return value;
}
