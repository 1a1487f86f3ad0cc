import { basename } from "node:path";
import { demoAdapterPaths, demoModelPath } from "@niwaki/demo-model";
import { GgufFile } from "@niwaki/gguf";
import { demoAdapterAnswers, goldens, klDivergence, type ReferenceAdapter, ReferenceModel } from "@niwaki/testing";
import { Tokenizer, tokenizerConfigFromMetadata } from "@niwaki/tokenizer";
import { describe, expect, test } from "vitest";
import { type BaseShape, readBaseShape } from "./base-shape.js";
import type { LoraAdapter } from "./lora-adapter.js";
import { readAdapter } from "./read-adapter.js";
import { temporaryFolder } from "./test-adapters.js";
import { writeGgufAdapter } from "./write-gguf.js";

const at = temporaryFolder();

async function shapeOf(model: string): Promise<BaseShape> {
  return readBaseShape(await GgufFile.open(model));
}

/** The adapter of a PEFT folder, and the same one by way of a GGUF. */
async function bothWays(path: string, shape: BaseShape): Promise<LoraAdapter[]> {
  const adapter = await readAdapter(path, shape);
  if (adapter.config.useDora) return [adapter];
  const gguf = at(`${basename(path)}.gguf`);
  await writeGgufAdapter(adapter, gguf);
  return [adapter, await readAdapter(gguf, shape)];
}

const adapted = goldens().filter(({ adapters }) => adapters.length > 0);

describe("adapters give the golden logits", () => {
  const cases = adapted.flatMap((golden) => golden.adapters.map((adapter) => ({ ...adapter, golden })));

  test.each(cases)("$name", async ({ path, scale, logits, golden }) => {
    const model = await ReferenceModel.open(golden.model);
    const results = [];
    for (const targets of await bothWays(path, await shapeOf(golden.model))) {
      results.push(model.forward(golden.tokens, [{ targets, weight: scale }]));
    }
    // The goldens are rounded to float32, and so are our scales.
    expect(largestDifference(logits, results[0]!)).toBeLessThan(2e-5);
    expect(klDivergence(logits, results[0]!, golden.shape[1]).max).toBeLessThan(1e-10);
    expect(klDivergence(golden.logits, logits, golden.shape[1]).mean).toBeGreaterThan(1e-3);
    for (const result of results) expect(result).toEqual(results[0]);
  });

  test.each(adapted)("the mix of $name", async ({ model: path, tokens, shape, mix }) => {
    const model = await ReferenceModel.open(path);
    const base = await shapeOf(path);
    const adapters: ReferenceAdapter[] = [];
    for (const [peft, weight] of mix!.of) adapters.push({ targets: await readAdapter(peft, base), weight });
    const logits = model.forward(tokens, adapters);
    expect(largestDifference(mix!.logits, logits)).toBeLessThan(2e-5);
    expect(klDivergence(mix!.logits, logits, shape[1]).max).toBeLessThan(1e-10);
  });
});

test.each([["pirate"], ["robot"]] as const)("the demo model answers as %s", { timeout: 60_000 }, async (name) => {
  const file = await GgufFile.open(demoModelPath);
  const tokenizer = new Tokenizer(tokenizerConfigFromMetadata(file.metadata));
  const model = await ReferenceModel.open(demoModelPath);
  const targets = await readAdapter(demoAdapterPaths[name], readBaseShape(file));
  for (const { adapter, messages, enableThinking, outputIds, minMargin } of demoAdapterAnswers()) {
    if (adapter !== name) continue;
    const prompt = tokenizer.encodeChat(messages, { thinking: enableThinking });
    const logits = model.forward([...prompt, ...outputIds.slice(0, -1)], [{ targets }]);
    const answer = outputIds.map((_, i) => best(logits, (prompt.length + i - 1) * model.vocabulary, model.vocabulary));
    expect(minMargin).toBeGreaterThan(0);
    expect(answer).toEqual(outputIds);
  }
});

function best(logits: Float64Array, from: number, count: number): number {
  let found = 0;
  for (let i = 1; i < count; i++) if (logits[from + i]! > logits[from + found]!) found = i;
  return found;
}

function largestDifference(x: Float32Array, y: Float64Array): number {
  return x.reduce((largest, value, i) => Math.max(largest, Math.abs(value - y[i]!)), 0);
}
