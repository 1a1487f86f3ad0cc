import { demoAdapterPaths, demoModelPath } from "@niwaki/demo-model";
import { Qwen3Model } from "@niwaki/qwen3-model";
import { columns } from "./columns.mjs";

const questions = process.argv.slice(2);
if (questions.length === 0) {
  questions.push("Where does a bear live?", "What is 3 + 4?", "Tell me a story about a fox named Mia.");
}
const isLive = process.stdout.isTTY === true && process.stdout.columns >= 60;
const speakers = [undefined, ...Object.keys(demoAdapterPaths)].map((adapter) => ({
  title: adapter ?? "base",
  adapter,
}));
const together = { most: 0, steps: 0 };

const model = await Qwen3Model.load(demoModelPath, {
  onStep: ({ chunks, steps }) => {
    together.most = Math.max(together.most, chunks.length);
    if (chunks.length === speakers.length) together.steps += steps;
  },
});
for (const [name, path] of Object.entries(demoAdapterPaths)) await model.adapters.load(path, { name });

for (const question of questions) await answer(question);
const { steps } = model.statistics();
console.log(`${steps} steps; the largest held ${together.most} answers, and ${together.steps} held all of a question`);
await model.dispose();

/** All answers to a question at once; the engine puts them into the same steps, each row with its own adapter. */
async function answer(question) {
  const answers = speakers.map(({ title }) => ({ title, text: "" }));
  console.log(question);
  let drawn = 0;
  const draw = (isWhole) => {
    const lines = columns(answers, process.stdout.columns);
    // Back to the first line of the last picture, which is gone if it is above the screen.
    const shown = isWhole ? lines : lines.slice(0, process.stdout.rows - 1);
    process.stdout.write(`${drawn > 0 ? `\x1b[${drawn}A` : ""}\r\x1b[J${shown.map((line) => `${line}\n`).join("")}`);
    drawn = shown.length;
  };
  await Promise.all(
    speakers.map(async ({ adapter }, i) => {
      const options = { thinking: false, maxTokens: 200, ...(adapter === undefined ? {} : { adapter }) };
      for await (const { text } of model.generate([{ role: "user", content: question }], options)) {
        answers[i].text += text;
        if (isLive) draw(false);
      }
    }),
  );
  if (isLive) draw(true);
  else for (const { title, text } of answers) console.log(`${title.padEnd(8)}${text}`);
  console.log();
}
