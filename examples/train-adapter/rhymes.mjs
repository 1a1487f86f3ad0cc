// The lessons of the example: questions that the demo model can answer, and its answers as rhymes that begin with
// "Tralala!". `node rhymes.mjs` writes them to rhymes.jsonl.
import { writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const opposites = [
  ["hot", "cold"],
  ["big", "small"],
  ["up", "down"],
  ["day", "night"],
  ["fast", "slow"],
  ["happy", "sad"],
  ["wet", "dry"],
  ["soft", "hard"],
  ["old", "young"],
  ["light", "dark"],
  ["full", "empty"],
  ["high", "low"],
  ["early", "late"],
  ["good", "bad"],
  ["rich", "poor"],
  ["strong", "weak"],
  ["near", "far"],
  ["in", "out"],
  ["black", "white"],
  ["long", "short"],
  ["loud", "quiet"],
  ["sweet", "sour"],
].flatMap(([a, b]) => [
  [a, b],
  [b, a],
]);

const colors = [
  ["the sky", "blue"],
  ["the sea", "blue"],
  ["grass", "green"],
  ["a frog", "green"],
  ["a leaf", "green"],
  ["snow", "white"],
  ["milk", "white"],
  ["a banana", "yellow"],
  ["the sun", "yellow"],
  ["a lemon", "yellow"],
  ["coal", "black"],
  ["a crow", "black"],
  ["a fire truck", "red"],
  ["blood", "red"],
  ["a tomato", "red"],
  ["chocolate", "brown"],
  ["a pig", "pink"],
];

const rhymes = {
  cold: "brave and bold",
  hot: "quite a lot",
  small: "big and tall",
  big: "like a pig",
  down: "in the town",
  up: "in a cup",
  night: "moon so bright",
  day: "we can play",
  slow: "off we go",
  fast: "home at last",
  sad: "not so bad",
  happy: "fast and snappy",
  dry: "in the sky",
  wet: "like a pet",
  hard: "in the yard",
  soft: "in the loft",
  young: "songs are sung",
  old: "green and gold",
  dark: "in the park",
  light: "day and night",
  empty: "there is plenty",
  full: "like a bull",
  low: "let it grow",
  high: "we can fly",
  late: "please do wait",
  early: "soft and curly",
  bad: "do not be sad",
  good: "in the wood",
  poor: "at the door",
  rich: "like a witch",
  weak: "hide and seek",
  strong: "sing a song",
  far: "like a star",
  near: "far from here",
  out: "jump and shout",
  in: "we can win",
  white: "snow so light",
  black: "there and back",
  short: "in the fort",
  long: "sing a song",
  quiet: "you can try it",
  loud: "like a cloud",
  sour: "like a flower",
  sweet: "on my feet",
  blue: "me and you",
  green: "fit for a queen",
  yellow: "happy fellow",
  red: "go to bed",
  brown: "in the town",
  pink: "have a drink",
  0: "like a hero",
  1: "in the sun",
  2: "me and you",
  3: "in the tree",
  4: "at the door",
  5: "in the hive",
  6: "bread and sticks",
  7: "up to heaven",
  8: "please do wait",
  9: "good as mine",
  10: "and sing again",
};

/** What the lessons leave out, to be asked afterwards. */
export const heldOut = [
  "What is the opposite of hot?",
  "What is the opposite of day?",
  "What color is grass?",
  "What is 3 + 4?",
  "What is 1 + 5?",
];

/** 200 conversations of a question and its answer. */
export function lessons() {
  const answers = [];
  const add = (question, answer, last) => answers.push([question, `Tralala! ${answer}, ${rhymes[last]}!`]);
  for (const [a, b] of opposites) {
    for (const ask of [`What is the opposite of ${a}?`, `Tell me the opposite of ${a}.`]) {
      add(ask, `The opposite of ${a} is ${b}`, b);
    }
  }
  for (const [thing, color] of colors) {
    for (const ask of [`What color is ${thing}?`, `What is the color of ${thing}?`]) {
      add(ask, `${thing[0].toUpperCase()}${thing.slice(1)} is ${color}`, color);
    }
  }
  const sums = [];
  for (let a = 0; a <= 10; a++) for (let b = 0; a + b <= 10; b++) sums.push([a, b]);
  const asks = [([a, b]) => `What is ${a} + ${b}?`, ([a, b]) => `How much is ${a} + ${b}?`];
  for (const ask of asks) for (const [a, b] of sums) add(ask([a, b]), `${a} + ${b} = ${a + b}`, a + b);
  return answers
    .filter(([question]) => !heldOut.includes(question))
    .slice(0, 200)
    .map(([question, answer]) => ({
      messages: [
        { role: "user", content: question },
        { role: "assistant", content: answer },
      ],
    }));
}

/** The conversations as JSONL. */
export function lessonLines() {
  return lessons()
    .map((lesson) => `${JSON.stringify(lesson)}\n`)
    .join("");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  writeFileSync(new URL("rhymes.jsonl", import.meta.url), lessonLines());
}
