/** What a `Heap` holds; `heapIndex` is the heap's own, -1 outside of it. An item is in one heap at a time. */
export interface HeapItem {
  heapIndex: number;
}

/** A binary heap that can also remove from its middle: each item knows its place. All changes are O(log size). */
export class Heap<T extends HeapItem> {
  readonly #items: T[] = [];
  readonly #before: (a: T, b: T) => boolean;

  /** @param before whether `a` comes out before `b`. */
  constructor(before: (a: T, b: T) => boolean) {
    this.#before = before;
  }

  get size(): number {
    return this.#items.length;
  }

  /** The item that comes out first. */
  get first(): T | undefined {
    return this.#items[0];
  }

  /** All items, in no useful order. */
  values(): IterableIterator<T> {
    return this.#items.values();
  }

  add(item: T): void {
    this.#items.push(item);
    this.#rise(item, this.#items.length - 1);
  }

  remove(item: T): void {
    const index = item.heapIndex;
    item.heapIndex = -1;
    const last = this.#items.pop()!;
    if (last !== item) this.#settle(last, index);
  }

  /** The item's order has changed. */
  update(item: T): void {
    this.#settle(item, item.heapIndex);
  }

  #settle(item: T, index: number): void {
    if (this.#rise(item, index) === index) this.#sink(item, index);
  }

  #rise(item: T, index: number): number {
    const items = this.#items;
    let at = index;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      const above = items[parent]!;
      if (!this.#before(item, above)) break;
      items[at] = above;
      above.heapIndex = at;
      at = parent;
    }
    items[at] = item;
    item.heapIndex = at;
    return at;
  }

  #sink(item: T, index: number): void {
    const items = this.#items;
    let at = index;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= items.length) break;
      if (child + 1 < items.length && this.#before(items[child + 1]!, items[child]!)) child++;
      const below = items[child]!;
      if (!this.#before(below, item)) break;
      items[at] = below;
      below.heapIndex = at;
      at = child;
    }
    items[at] = item;
    item.heapIndex = at;
  }
}
