import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { StopText } from "./stop-text.js";

function run(stops: string[], pieces: string[]): { text: string; stopped: boolean } {
  const stop = new StopText(stops);
  let text = "";
  for (const piece of pieces) {
    const shown = stop.push(piece);
    text += shown.text;
    if (shown.stopped) return { text, stopped: true };
  }
  return { text: text + stop.end(), stopped: false };
}

describe("StopText", () => {
  it("stops across pieces and shows only what precedes", () => {
    expect(run(["</end>"], ["one <", "/e", "nd> two"])).toEqual({ text: "one ", stopped: true });
  });

  it("gives back what only looked like a stop", () => {
    expect(run(["</end>"], ["one <", "/e", "lse"])).toEqual({ text: "one </else", stopped: false });
  });

  it("takes the earliest of several", () => {
    expect(run(["c", "ab"], ["xabc"])).toEqual({ text: "x", stopped: true });
  });

  it("holds back no more than could still become a stop", () => {
    const stop = new StopText(["aab"]);
    expect(stop.push("aaa")).toEqual({ text: "a", stopped: false });
    expect(stop.push("b")).toEqual({ text: "", stopped: true });
  });

  it("gives the same for any division into pieces", () => {
    const letters = fc.array(fc.constantFrom("a", "b", "c"), { maxLength: 30 }).map((all) => all.join(""));
    const stops = fc.array(
      letters.map((text) => text.slice(0, 4)).filter((text) => text !== ""),
      { maxLength: 3 },
    );
    fc.assert(
      fc.property(letters, stops, fc.infiniteStream(fc.integer({ min: 1, max: 4 })), (text, all, sizes) => {
        const pieces: string[] = [];
        for (let rest = text; rest !== ""; ) {
          const size = sizes.next().value as number;
          pieces.push(rest.slice(0, size));
          rest = rest.slice(size);
        }
        // The stop that completes first ends the text; it is cut where the earliest match of that moment begins.
        let expected = { text, stopped: false };
        for (const end of pieces.map((_, i) => pieces.slice(0, i + 1).join(""))) {
          const at = all.map((stop) => end.indexOf(stop)).filter((index) => index !== -1);
          if (at.length > 0) {
            expected = { text: end.slice(0, Math.min(...at)), stopped: true };
            break;
          }
        }
        expect(run(all, pieces)).toEqual(expected);
      }),
      { seed: 7, numRuns: 2000 },
    );
  });
});
