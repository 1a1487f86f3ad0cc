import { describe, expect, test } from "vitest";
import { type AdapterLease, AdapterSlots } from "./adapter-slots.js";
import { randomNumbers } from "./random.js";

/** Slots whose loads are noted; they end at once, or when `finish` is called if `manual`. */
function slotsOf(count: number, manual = false) {
  const loads: string[] = [];
  const pending: { key: string; finish: (error?: Error) => void }[] = [];
  const slots = new AdapterSlots({
    slots: count,
    load: (slot, key) => {
      loads.push(`${key}>${slot}`);
      if (!manual) return;
      return new Promise<void>((resolve, reject) => {
        pending.push({ key, finish: (error) => (error === undefined ? resolve() : reject(error)) });
      });
    },
  });
  return { slots, loads, pending };
}

const settle = () => new Promise((resolve) => setImmediate(resolve));

/** Whether a promise is fulfilled by now. */
async function isDone(promise: Promise<unknown>): Promise<boolean> {
  let done = false;
  promise.then(
    () => {
      done = true;
    },
    () => {},
  );
  await settle();
  return done;
}

describe("AdapterSlots", () => {
  test("loads an adapter once for all who use it, and again only after it gave way", async () => {
    const { slots, loads } = slotsOf(2);
    const [a, again] = [await slots.acquire(["a"]), await slots.acquire(["a"])];
    expect([a.slots, again.slots]).toEqual([[0], [0]]);
    const b = await slots.acquire(["b"]);
    expect(loads).toEqual(["a>0", "b>1"]);
    expect(slots.list().map(({ key, references }) => [key, references])).toEqual([
      ["a", 2],
      ["b", 1],
    ]);
    a.release();
    a.release();
    b.release();
    expect((await slots.acquire(["c"])).slots).toEqual([1]);
    again.release();
    expect((await slots.acquire(["a"])).slots).toEqual([0]);
    expect(loads).toEqual(["a>0", "b>1", "c>1"]);
  });

  test("the longest unused gives way, empty slots first, pinned ones never", async () => {
    const { slots, loads } = slotsOf(3);
    for (const key of ["a", "b", "a"]) (await slots.acquire([key])).release();
    (await slots.acquire(["c"])).release();
    expect(loads.at(-1)).toBe("c>2");
    (await slots.acquire(["d"])).release(); // b
    expect(loads.at(-1)).toBe("d>1");
    slots.pin("a");
    (await slots.acquire(["e"])).release(); // not a, but c
    expect(loads.at(-1)).toBe("e>2");
    slots.unpin("a");
    (await slots.acquire(["f"])).release();
    expect(loads.at(-1)).toBe("f>0");
  });

  test("who finds no room waits, first come first served", async () => {
    const { slots } = slotsOf(2);
    const [a, b] = [await slots.acquire(["a"]), await slots.acquire(["b"])];
    const mix = slots.acquire(["c", "d"]);
    const later = slots.acquire(["a"]); // active, but the mix came first
    expect(slots.waiting).toBe(2);
    a.release();
    expect(await isDone(mix)).toBe(false);
    b.release();
    const lease = await mix;
    expect([...lease.slots].sort()).toEqual([0, 1]);
    expect(await isDone(later)).toBe(false);
    lease.release();
    expect((await later).slots).toHaveLength(1);
    expect(slots.waiting).toBe(0);
  });

  test("a mix may name an adapter twice; an empty one takes nothing", async () => {
    const { slots } = slotsOf(2);
    expect((await slots.acquire(["a", "b", "a"])).slots).toEqual([0, 1, 0]);
    expect(slots.list().map(({ references }) => references)).toEqual([1, 1]);
    expect((await slots.acquire([])).slots).toEqual([]);
  });

  test("nobody gets a slot before it is loaded", async () => {
    const { slots, pending } = slotsOf(1, true);
    const [first, second] = [slots.acquire(["a"]), slots.acquire(["a"])];
    await settle();
    expect(pending).toHaveLength(1);
    expect(await isDone(first)).toBe(false);
    expect(slots.list()[0]).toMatchObject({ key: "a", loading: true, references: 2 });
    pending[0]!.finish();
    expect((await first).slots).toEqual((await second).slots);
  });

  test("a load that fails is the error of those who asked, and the slot is free again", async () => {
    const { slots, pending } = slotsOf(1, true);
    const asked = [slots.acquire(["a"]), slots.acquire(["a"])].map((promise) =>
      promise.catch((error: Error) => error.message),
    );
    const other = slots.acquire(["b"]);
    await settle();
    pending[0]!.finish(new Error("no such tensor"));
    expect(await Promise.all(asked)).toEqual(["no such tensor", "no such tensor"]);
    await settle();
    pending[1]!.finish();
    (await other).release();
    const again = slots.acquire(["a"]);
    await settle();
    expect(pending.map(({ key }) => key)).toEqual(["a", "b", "a"]);
    pending[2]!.finish();
    expect((await again).slots).toEqual([0]);
    const throwing = new AdapterSlots({
      slots: 1,
      load: () => {
        throw new Error("at once");
      },
    });
    await expect(throwing.acquire(["a"])).rejects.toThrow("at once");
    expect(throwing.list()[0]).toMatchObject({ key: null, references: 0 });
  });

  test("an aborted request leaves the queue, or gives back what it got", async () => {
    const { slots, pending } = slotsOf(1, true);
    const [loading, waiting] = [new AbortController(), new AbortController()];
    const first = slots.acquire(["a"], { signal: loading.signal });
    const second = slots.acquire(["b"], { signal: waiting.signal });
    await settle();
    waiting.abort(new Error("gone"));
    await expect(second).rejects.toThrow("gone");
    expect(slots.waiting).toBe(0);
    loading.abort(new Error("also gone"));
    pending[0]!.finish();
    await expect(first).rejects.toThrow("also gone");
    expect(slots.list()[0]).toMatchObject({ key: "a", references: 0, loading: false });
    await expect(slots.acquire(["a"], { signal: AbortSignal.abort(new Error("before")) })).rejects.toThrow("before");
  });

  test("the abort of the first in the queue lets the next one in", async () => {
    const { slots } = slotsOf(2);
    await slots.acquire(["a"]);
    const controller = new AbortController();
    const mix = slots.acquire(["b", "c"], { signal: controller.signal });
    const next = slots.acquire(["d"]);
    expect(await isDone(next)).toBe(false);
    controller.abort();
    await expect(mix).rejects.toThrow();
    expect((await next).slots).toEqual([1]);
  });

  test("unloading waits for those who use it, and nobody new gets it", async () => {
    const { slots, loads } = slotsOf(1);
    const lease = await slots.acquire(["a"]);
    const waiter = slots.acquire(["a"]);
    const unloaded = slots.unload("a");
    expect(slots.unload("a")).toBe(unloaded);
    await expect(slots.acquire(["a"])).rejects.toMatchObject({ code: "unloading", value: "a" });
    expect(await isDone(unloaded)).toBe(false);
    lease.release();
    (await waiter).release();
    await unloaded;
    expect(slots.list()[0]).toMatchObject({ key: null });
    await slots.unload("never there");
    await slots.acquire(["a"]);
    expect(loads).toEqual(["a>0", "a>0"]);
  });

  test("more adapters than can be active are refused at once", async () => {
    const { slots } = slotsOf(2);
    await expect(slots.acquire(["a", "b", "c"])).rejects.toMatchObject({ code: "no-slots" });
    const lease = await slots.acquire(["x"]);
    const mix = slots.acquire(["a", "b"]);
    const refused = expect(mix).rejects.toMatchObject({ code: "no-slots" });
    slots.pin("p");
    await refused;
    slots.pin("q");
    slots.pin("p");
    expect(() => slots.pin("r")).toThrow(expect.objectContaining({ code: "no-slots" }));
    await expect(slots.acquire(["a"])).rejects.toMatchObject({ code: "no-slots" });
    lease.release();
    expect((await slots.acquire(["p", "q"])).slots).toHaveLength(2);
    expect(() => new AdapterSlots({ slots: 0, load: () => {} })).toThrow(
      expect.objectContaining({ code: "invalid-argument" }),
    );
  });
});

/** Runs a random history; checks the books after each step against what was granted. Returns all that happened. */
async function randomHistory(seed: number): Promise<string[]> {
  const random = randomNumbers(seed);
  const below = (limit: number) => Math.floor(random() * limit);
  const count = 1 + below(4);
  const held: (string | undefined)[] = new Array(count).fill(undefined); // what a device would hold
  const [happened, leases] = [[] as string[], [] as { keys: string[]; lease: AdapterLease }[]];
  const wrong: string[] = []; // Noted, because an error thrown in a callback would count as a failed load.
  const queue: { keys: string[]; controller: AbortController; over: boolean }[] = [];
  const loading: (() => void)[] = [];
  const slots = new AdapterSlots({
    slots: count,
    load: (slot, key) => {
      happened.push(`load ${key} ${slot}`);
      // Nobody may be using a slot that is overwritten.
      if (leases.some(({ lease }) => lease.slots.includes(slot))) wrong.push(`${key} overwrites slot ${slot}`);
      held[slot] = undefined;
      return new Promise<void>((resolve, reject) => {
        const fails = below(8) === 0;
        loading.push(() => {
          if (!fails) held[slot] = key;
          fails ? reject(new Error("failed")) : resolve();
        });
      });
    },
  });
  const request = (): void => {
    const keys = Array.from({ length: 1 + below(Math.min(3, count)) }, () => `k${below(6)}`);
    const entry = { keys, controller: new AbortController(), over: false };
    queue.push(entry);
    slots.acquire(keys, { signal: entry.controller.signal }).then(
      (lease) => {
        entry.over = true;
        happened.push(`grant ${keys} ${lease.slots}`);
        if (lease.slots.some((slot, i) => held[slot] !== keys[i])) wrong.push(`${keys} got ${lease.slots}`);
        leases.push({ keys, lease });
      },
      (error: Error) => {
        entry.over = true;
        happened.push(`refuse ${keys} ${error.message.slice(0, 20)}`);
      },
    );
  };
  const release = () => leases.splice(below(leases.length), 1)[0]?.lease.release();
  const actions = [
    request,
    request,
    request,
    release,
    release,
    () => loading.shift()?.(),
    () => loading.splice(below(loading.length), 1)[0]?.(),
    () => queue.filter(({ over }) => !over)[below(4)]?.controller.abort(new Error("aborted")),
    () => void slots.unload(`k${below(6)}`),
    () => slots.unpin(`k${below(6)}`),
    () => {
      if (below(4) === 0 && slots.list().filter(({ pinned }) => pinned).length < count - 1) {
        try {
          slots.pin(`k${below(6)}`);
        } catch (error) {
          happened.push(`no pin: ${(error as Error).message.slice(0, 10)}`);
        }
      }
    },
  ];
  for (let step = 0; step < 200; step++) {
    actions[below(actions.length)]!();
    for (let i = 0; i < 12; i++) await Promise.resolve();
    const keys = slots.list().flatMap(({ key }) => (key === null ? [] : [key]));
    expect(new Set(keys).size).toBe(keys.length);
    for (const { keys: names, lease } of leases)
      expect(lease.slots.map((slot) => slots.list()[slot]!.key)).toEqual(names);
  }
  // Everybody gets an answer once all that is held is given back.
  for (let rounds = 0; rounds < 400 && queue.some(({ over }) => !over); rounds++) {
    loading.shift()?.();
    release();
    for (let i = 0; i < 12; i++) await Promise.resolve();
  }
  expect(queue.filter(({ over }) => !over)).toEqual([]);
  expect(wrong).toEqual([]);
  while (leases.length > 0) release();
  expect(slots.list().every(({ references }) => references === 0)).toBe(true);
  return happened;
}

test("250 random histories: no slot is overwritten under a user, everybody is answered, and the same calls do the same", async () => {
  let events = 0;
  for (let seed = 0; seed < 250; seed++) {
    const happened = await randomHistory(seed);
    events += happened.length;
    if (seed % 25 === 0) expect(await randomHistory(seed)).toEqual(happened);
  }
  expect(events).toBeGreaterThan(5000);
});
