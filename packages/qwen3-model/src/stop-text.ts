/**
 * Finds stop strings in streamed text, also across token borders: text that may still become a stop string is held back.
 */
export class StopText {
  readonly #stops: readonly string[];
  #held = "";

  constructor(stops: readonly string[]) {
    this.#stops = stops;
  }

  /** Takes the next text and returns what is safe to show; `stopped` once a stop string was met (what precedes it is shown). */
  push(text: string): { text: string; stopped: boolean } {
    const all = this.#held + text;
    let at = -1;
    for (const stop of this.#stops) {
      const found = all.indexOf(stop);
      if (found !== -1 && (at === -1 || found < at)) at = found;
    }
    if (at !== -1) {
      this.#held = "";
      return { text: all.slice(0, at), stopped: true };
    }
    const keep = this.#possibleStart(all);
    this.#held = all.slice(all.length - keep);
    return { text: all.slice(0, all.length - keep), stopped: false };
  }

  /** What was held back, now that nothing more comes. */
  end(): string {
    const held = this.#held;
    this.#held = "";
    return held;
  }

  /** The length of the longest end of `text` that begins a stop string. */
  #possibleStart(text: string): number {
    let longest = 0;
    for (const stop of this.#stops) {
      for (let length = Math.min(stop.length - 1, text.length); length > longest; length--) {
        if (text.endsWith(stop.slice(0, length))) {
          longest = length;
          break;
        }
      }
    }
    return longest;
  }
}
