const RESET = "\x1b[0m";
const paint = (color, text) => (text === "" ? "" : `\x1b[${color}m${text}${RESET}`);
const PROMPT = 33;
const DECODE = 32;
/** A block that is free, free and cached, held by one chat, held by several. */
const BLOCKS = [
  [90, "·"],
  [34, "▒"],
  [32, "█"],
  [35, "█"],
];
const STATES = { "to come": 90, waiting: 33, running: 32, done: 34, aborted: 31 };

/**
 * One picture of the engine, at most as large as the terminal.
 * @param {object} state `step` (the last StepRecord, if there was one), `chats`, `blocks` (`model.blockMap()`),
 *   `statistics`, `tokensPerSecond`
 * @param {{ columns: number, rows: number }} size
 * @returns {string[]} lines, with colors
 */
export function frame({ step, chats, blocks, statistics, tokensPerSecond }, { columns, rows }) {
  const { running, waiting, cache, preemptions } = statistics;
  const done = chats.filter(({ state }) => state === "done").length;
  const lines = [
    `${running} chats run, ${waiting} wait, ${done} of ${chats.length} are done, ${preemptions} preemptions`,
    `${tokensPerSecond.toFixed(0)} tokens/s`,
    "",
    ...batch(step, columns),
    "",
    ...map(blocks, columns),
    legend(cache),
    "",
  ];
  // The chats that do something now, and what room is left for the others.
  const order = ["running", "waiting", "done", "aborted", "to come"];
  const shown = [...chats].sort((a, b) => order.indexOf(a.state) - order.indexOf(b.state) || a.number - b.number);
  for (const chat of shown.slice(0, Math.max(0, rows - lines.length))) lines.push(chatLine(chat, columns));
  return lines.slice(0, rows);
}

/** The rows of the last step: a mark for each, the decode rows and the prompts' chunks. */
function batch(step, columns) {
  if (step === undefined) return ["no step yet", ""];
  const lengths = step.chunks.map(({ start, end }) => end - start);
  const decodes = lengths.filter((length) => length === 1).length;
  const time = (step.ended - step.started).toFixed(1);
  const title = `step ${step.number}: ${step.steps > 1 ? `${step.steps} times ` : ""}${step.rows} rows of ${step.chunks.length} chats in ${time} ms`;
  const width = Math.min(step.rows, columns);
  const decodeWidth = Math.min(decodes, width);
  return [
    title.slice(0, columns),
    paint(DECODE, "▮".repeat(decodeWidth)) + paint(PROMPT, "▮".repeat(width - decodeWidth)),
  ];
}

/** Every block of the cache as one character. */
function map(blocks, columns) {
  const lines = [];
  for (let start = 0; start < blocks.length; start += columns) {
    let line = "";
    let run = "";
    let state = -1;
    for (const block of blocks.subarray(start, start + columns)) {
      if (block !== state && run !== "") {
        line += paint(BLOCKS[state][0], run);
        run = "";
      }
      state = block;
      run += BLOCKS[block][1];
    }
    lines.push(line + paint(BLOCKS[state][0], run));
  }
  return lines;
}

function legend({ usedBlocks, blocks, hitRate }) {
  const names = ["free", "cached", "held", "shared"];
  const marks = BLOCKS.map(([color, mark], i) => `${paint(color, mark)} ${names[i]}`).join("  ");
  return `${marks}  ${usedBlocks} of ${blocks} blocks, hit rate ${Math.round(100 * hitRate)}%`;
}

function chatLine({ number, state, tokens, text }, columns) {
  const head = `${String(number).padStart(3)} ${state.padEnd(7)} ${String(tokens).padStart(4)} `;
  // Its end, on one line; what a model writes must not move the cursor.
  const characters = Array.from(text.replace(/\s+/g, " ").replace(/\p{Cc}/gu, ""));
  const room = Math.max(0, columns - head.length);
  return paint(STATES[state], head) + characters.slice(Math.max(0, characters.length - room)).join("");
}
