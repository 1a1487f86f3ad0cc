import { writeFileSync } from "node:fs";
import { planChunks, promptMemory, simulate } from "@niwaki/prefill-scheduler";
import { timeline } from "./timeline.mjs";

const random = (state) => () => {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return state / 2 ** 32;
};

// Three chats a second for 20 seconds, and every five seconds somebody sends a document.
const [next, trace] = [random(7), []];
for (let at = 0; at < 20_000; at += -Math.log(1 - next()) * 333) {
  const prefix = { key: "system prompt", tokens: 64 };
  trace.push({ at, client: "chats", promptTokens: 80 + Math.floor(next() * 80), outputTokens: 40, prefix });
}
for (let at = 2000; at < 20_000; at += 5000)
  trace.push({ at, client: "documents", promptTokens: 3000, outputTokens: 60 });

const cost = { fixed: 12, perToken: 0.25, perContextToken: 0.00002 };
const limits = { maxTokensPerStep: 512, maxSequencesPerStep: 32, chunkSize: 512, blockCount: 600, blockSize: 16 };
const serviceLevel = { timeToFirstToken: 1000, timeBetweenTokens: 50 };
const columns = ["", "first token p50", "p99", "between tokens p50", "p99", "max", "good/s", "preempted"];
const show = (row) =>
  console.log(row.map((text, i) => (i ? text.padStart(columns[i].length) : text.padEnd(18))).join("  "));

show(columns);
for (const choice of ["prefill-first", "interleaved", "decode-priority", "interleaved, 40 ms"]) {
  const [policy, target] = choice.split(", ");
  const options = { ...limits, cost, serviceLevel, policy, ...(target && { targetMilliseconds: parseFloat(target) }) };
  const report = simulate(trace, options);
  const { timeToFirstToken: first, timeBetweenTokens: between } = report;
  const times = [first.p50, first.p99, between.p50, between.p99, between.max].map((time) => time.toFixed(0));
  show([choice, ...times, report.goodput.toFixed(2), `${report.preemptions}`]);
  if (target && process.argv[2]) writeFileSync(process.argv[2], timeline(report));
}

const shape = { layers: 28, heads: 16, kvHeads: 8, headDimension: 128 };
const { keysAndValues, scores } = promptMemory(planChunks(3000, { chunkSize: 512 }), shape);
console.log(`a document: ${Math.round(keysAndValues / 1e6)} MB of K and V, ${Math.round(scores / 1e6)} MB of scores`);
