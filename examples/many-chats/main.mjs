import { parseArgs } from "node:util";
import { demoModelPath } from "@niwaki/demo-model";
import { Qwen3Model } from "@niwaki/qwen3-model";
import { frame } from "./view.mjs";

const { values } = parseArgs({
  options: {
    model: { type: "string", default: demoModelPath },
    chats: { type: "string", default: "200" },
    /** Milliseconds from one arrival to the next. */
    every: { type: "string", default: "5" },
    tokens: { type: "string", default: "200" },
  },
});
const isLive = process.stdout.isTTY === true;
const leave = new AbortController();
const speed = { begun: performance.now(), tokens: 0, recent: [] };
let step;

// A cache of 128 blocks: too small for all chats at once, so some wait and old prefixes make room for new ones.
const model = await Qwen3Model.load(values.model, {
  contextLength: 512,
  kvCacheTokens: 2048,
  maxSequences: 12,
  onStep: (record) => {
    step = record;
  },
});

const introduction =
  "We are sitting in a garden in the evening and talk about animals, about the weather and about old times. ";
const questions = ["Tell me a story about a fox named Mia.", "What is 3 + 4?", "Where does a bear live?"];
const chats = Array.from({ length: Number(values.chats) }, (_, i) => ({
  number: i + 1,
  state: "to come",
  tokens: 0,
  text: "",
  prompt: introduction + questions[i % questions.length],
}));

async function talk(chat) {
  chat.state = "waiting";
  const messages = [{ role: "user", content: chat.prompt }];
  // Past the end of turn, so that every chat is a long one.
  const logitBias = new Map(model.tokenizer.endOfTurnTokenIds.map((id) => [id, -Infinity]));
  const options = { maxTokens: Number(values.tokens), temperature: 0.8, seed: chat.number, logitBias };
  for await (const piece of model.generate(messages, { ...options, thinking: false, signal: leave.signal })) {
    chat.text += piece.text;
    chat.tokens += piece.tokens.length;
    speed.tokens += piece.tokens.length;
    chat.state = piece.finishReason === null ? "running" : piece.finishReason === "abort" ? "aborted" : "done";
  }
}

function draw() {
  const now = performance.now();
  speed.recent.push({ now, tokens: speed.tokens });
  while (speed.recent.length > 2 && now - speed.recent[0].now > 2000) speed.recent.shift();
  const [first] = speed.recent;
  const tokensPerSecond = (speed.tokens - first.tokens) / Math.max(0.001, (now - first.now) / 1000);
  const size = { columns: process.stdout.columns ?? 80, rows: process.stdout.rows ?? 24 };
  const lines = frame({ step, chats, blocks: model.blockMap(), statistics: model.statistics(), tokensPerSecond }, size);
  // From the top, each line cleared to its end, and what is below.
  process.stdout.write(`\x1b[H${lines.map((line) => `${line}\x1b[K`).join("\n")}\x1b[J`);
}

let timer;
if (isLive) {
  process.stdout.write("\x1b[?1049h\x1b[?25l\x1b[?7l"); // the other screen, no cursor, long lines are cut
  timer = setInterval(draw, 50);
}
process.once("SIGINT", () => leave.abort());
const talking = [];
for (const chat of chats) {
  if (leave.signal.aborted) break;
  talking.push(talk(chat));
  await new Promise((resolve) => setTimeout(resolve, Number(values.every)));
}
await Promise.all(talking);
if (isLive) {
  draw();
  clearInterval(timer);
  process.stdout.write("\x1b[?7h\x1b[?25h\x1b[?1049l");
}

const seconds = (performance.now() - speed.begun) / 1000;
const { steps, preemptions, cache } = model.statistics();
const ended = chats.filter(({ state }) => state === "done").length;
console.log(`${ended} chats, ${speed.tokens} tokens in ${seconds.toFixed(1)} s, in ${steps} steps`);
console.log(`${cache.hitTokens} tokens of prompts were cached, ${cache.evictedBlocks} blocks evicted`);
console.log(`${preemptions} chats lost their blocks for a while`);
await model.dispose();
