import { expect, it } from "vitest";
import { Entry } from "./entry.js";
import { FairQueue } from "./fair-queue.js";
import { random } from "./test-random.js";

it("forgets clients that are gone, once the others had as much", () => {
  const next = random(9);
  const queue = new FairQueue<number>();
  const present: Entry<number>[] = [];
  let most = 0;
  for (let i = 0; i < 20_000; i++) {
    const client = queue.enter(`${i}`);
    const entry = new Entry(i, 1 + next(100), i, client, 0, client.service);
    queue.add(entry);
    present.push(entry);
    if (present.length < 10) continue;
    const served = queue.first!;
    queue.remove(served);
    queue.charge(served, served.promptTokens + next(50));
    queue.leave(served.client);
    present.splice(present.indexOf(served), 1);
    most = Math.max(most, queue.clientCount);
  }
  expect([queue.size, present.length]).toEqual([9, 9]);
  expect(most).toBeLessThan(50);
  for (const entry of present) {
    queue.remove(entry);
    queue.leave(entry.client);
  }
  expect([queue.size, queue.first]).toEqual([0, undefined]);
});

it("serves the client that had least, and among equals the one that came first", () => {
  const queue = new FairQueue<string>();
  const add = (name: string, key: string, arrival: number) => {
    const client = queue.enter(key);
    const entry = new Entry(name, 10, arrival, client, 0, client.service);
    queue.add(entry);
    return entry;
  };
  add("a0", "a", 0);
  add("a1", "a", 1);
  add("b0", "b", 2);
  add("c0", "c", 3);
  const order: string[] = [];
  for (let first = queue.first; first; first = queue.first) {
    order.push(first.request);
    queue.remove(first);
    queue.charge(first, 10);
    queue.charge(first, 10);
    queue.leave(first.client);
  }
  expect(order).toEqual(["a0", "b0", "c0", "a1"]);
});
