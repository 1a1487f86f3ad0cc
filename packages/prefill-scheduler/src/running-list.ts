import { type Entry, isMoreUrgent } from "./entry.js";

/** The requests that hold blocks, the most urgent first: who preempts stands before whom it preempts. */
export class RunningList<R> {
  readonly #entries: Entry<R>[] = [];

  get length(): number {
    return this.#entries.length;
  }

  at(index: number): Entry<R> {
    return this.#entries[index]!;
  }

  add(entry: Entry<R>): void {
    this.#entries.splice(this.#place(entry), 0, entry);
  }

  remove(entry: Entry<R>): void {
    this.#entries.splice(this.#place(entry), 1);
  }

  /** Takes out the least urgent. */
  removeLast(): Entry<R> {
    return this.#entries.pop()!;
  }

  /** How many are more urgent. */
  #place(entry: Entry<R>): number {
    let low = 0;
    let high = this.#entries.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (isMoreUrgent(this.#entries[middle]!, entry)) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
