import { demoModelPath } from "@niwaki/demo-model";
import { Qwen3Model } from "@niwaki/qwen3-model";

const model = await Qwen3Model.load(process.argv[2] ?? demoModelPath);
const ask = (content) => model.generate([{ role: "user", content }], { thinking: false, maxTokens: 200 });

for await (const piece of ask("Tell me a story about a fox named Mia.")) process.stdout.write(piece.text);
console.log();

// All at once: the engine puts the three into the same steps.
const questions = ["What is 3 + 4?", "What is the opposite of hot?", "Where does a bear live?"];
const answers = await Promise.all(
  questions.map(async (question) => {
    let answer = "";
    for await (const piece of ask(question)) answer += piece.text;
    return answer;
  }),
);
for (const [i, question] of questions.entries()) console.log(`${question} ${answers[i]}`);

await model.dispose();
