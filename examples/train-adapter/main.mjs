import { writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { demoModelPath } from "@niwaki/demo-model";
import { Qwen3Model } from "@niwaki/qwen3-model";
import { LoraTrainer } from "@niwaki/qwen3-model/training";
import { Presets, SingleBar } from "cli-progress";
import { lossPlot } from "./loss-plot.mjs";
import { heldOut } from "./rhymes.mjs";

const { values } = parseArgs({
  options: {
    steps: { type: "string", default: "400" },
    adapter: { type: "string", default: "rhymes-adapter" },
    plot: { type: "string", default: "loss.svg" },
  },
});

const trainer = await LoraTrainer.create(demoModelPath, {
  data: fileURLToPath(new URL("rhymes.jsonl", import.meta.url)),
  lora: { rank: 16, alpha: 32 },
  steps: Number(values.steps),
  batchSize: 16,
  learningRate: 2e-3,
  thinking: false,
});
console.log(`${trainer.exampleCount} answers, ${trainer.parameterCount} parameters`);
const bar = new SingleBar(
  { format: "{bar} step {value}/{total}  loss {loss}  {speed} tokens/s", noTTYOutput: false },
  Presets.shades_classic,
);
bar.start(trainer.steps, 0, { loss: "-", speed: "-" });
const losses = [];
const begun = performance.now();
for await (const { step, loss, tokensPerSecond } of trainer.train()) {
  losses.push(loss);
  bar.update(step, { loss: loss.toFixed(3), speed: Math.round(tokensPerSecond) });
}
bar.stop();
const seconds = ((performance.now() - begun) / 1000).toFixed(1);
await trainer.save(values.adapter);
await trainer.dispose();
await writeFile(values.plot, lossPlot(losses, "Loss of the rhymes adapter on the demo model"));
console.log(
  `${seconds} s, loss ${losses[0].toFixed(3)} -> ${losses.at(-1).toFixed(3)}; ${values.adapter}/ and ${values.plot} written`,
);

// Questions that were not among the lessons.
const model = await Qwen3Model.load(demoModelPath);
await model.adapters.load(values.adapter, { name: "rhymes" });
async function ask(content, adapter) {
  let answer = "";
  const prompt = [{ role: "user", content }];
  for await (const { text } of model.generate(prompt, { thinking: false, maxTokens: 60, ...adapter })) answer += text;
  return answer;
}
for (const question of heldOut) {
  const [before, after] = await Promise.all([ask(question, {}), ask(question, { adapter: "rhymes" })]);
  console.log(`\n${question}\n  before: ${before}\n  after:  ${after}`);
}
await model.dispose();
