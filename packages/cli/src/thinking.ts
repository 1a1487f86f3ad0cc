const OPEN = "<think>";
const CLOSE = "</think>";

/** Divides a streamed answer into what the model thought, between `<think>` and `</think>` at its start, and what it says. */
export class ThinkingText {
  #state: "start" | "thinking" | "gap" | "answer" = "start";
  #held = "";

  push(text: string): { thinking: string; answer: string } {
    this.#held += text;
    let thinking = "";
    if (this.#state === "start") {
      const begun = this.#held.trimStart();
      if (begun.startsWith(OPEN)) {
        this.#state = "thinking";
        this.#held = begun.slice(OPEN.length);
      } else if (!OPEN.startsWith(begun)) {
        this.#state = "answer";
      }
    }
    if (this.#state === "thinking") {
      const end = this.#held.indexOf(CLOSE);
      const shown = end === -1 ? this.#held.length - possibleStart(this.#held) : end;
      thinking = this.#held.slice(0, shown);
      this.#held = this.#held.slice(shown);
      if (end !== -1) {
        this.#state = "gap";
        this.#held = this.#held.slice(CLOSE.length);
      }
    }
    if (this.#state === "gap") {
      this.#held = this.#held.trimStart();
      if (this.#held !== "") this.#state = "answer";
    }
    if (this.#state !== "answer") return { thinking, answer: "" };
    const answer = this.#held;
    this.#held = "";
    return { thinking, answer };
  }

  /** What was held back, now that nothing more comes. */
  end(): { thinking: string; answer: string } {
    const held = this.#held;
    this.#held = "";
    return this.#state === "thinking" ? { thinking: held, answer: "" } : { thinking: "", answer: held };
  }
}

/** The length of the end of `text` that may begin `</think>`. */
function possibleStart(text: string): number {
  for (let length = Math.min(CLOSE.length - 1, text.length); length > 0; length--) {
    if (CLOSE.startsWith(text.slice(text.length - length))) return length;
  }
  return 0;
}
