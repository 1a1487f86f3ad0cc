import { describe, expect, it } from "vitest";
import { Heap } from "./heap.js";
import { random } from "./test-random.js";

class Item {
  heapIndex = -1;

  constructor(public order: number) {}
}

describe("Heap", () => {
  it("gives the first of a sorted table, whatever is added, removed and changed", () => {
    const next = random(1);
    const heap = new Heap<Item>((a, b) => a.order < b.order);
    const table: Item[] = [];
    const item = () => table[next(table.length)]!;
    for (let i = 0; i < 20_000; i++) {
      const choice = next(10);
      if (choice < 4 || table.length === 0) {
        const added = new Item(next(1000));
        table.push(added);
        heap.add(added);
      } else if (choice < 7) {
        const changed = item();
        changed.order = next(1000);
        heap.update(changed);
      } else {
        const removed = choice < 9 ? heap.first! : item();
        table.splice(table.indexOf(removed), 1);
        heap.remove(removed);
        if (removed.heapIndex !== -1) expect.fail("a removed item has a place");
      }
      const least = Math.min(...table.map(({ order }) => order));
      if (heap.size !== table.length || (heap.first?.order ?? Infinity) !== least) expect.fail(`wrong after ${i}`);
    }
    expect(new Set(heap.values())).toEqual(new Set(table));
  });
});
