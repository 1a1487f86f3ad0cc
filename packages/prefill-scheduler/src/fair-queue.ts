import { type Entry, isMoreUrgent } from "./entry.js";
import { Heap, type HeapItem } from "./heap.js";

/** A generated token counts as two prompt tokens, as in the paper. */
const GENERATED_WEIGHT = 2;

/** Whoever sends requests under one `client` key. */
export class Client<R> implements HeapItem {
  heapIndex = -1;
  /** Requests of it that are known, waiting and running. */
  requests = 0;
  /** The order that its place in the heap was made for; the true one only ever grows past it. */
  rank = 0;
  arrival = 0;
  readonly waiting = new Heap<Entry<R>>(isMoreUrgent);

  /** @param service its virtual counter: what it was served so far, in prompt tokens. */
  constructor(
    readonly key: string | undefined,
    public service: number,
  ) {}
}

/**
 * The waiting requests of all clients: next is the head of the client that was served least (the virtual token counter
 * of Sheng et al., "Fairness in Serving Large Language Models", 2024), a level of priority counting as `agingTokens` of
 * service.
 *
 * ```text
 *   clients, by service + priority of the head      a: 120      b: 340      c: 900
 *   requests of each, by urgency                    a1 a2       b1          c1 c2 c3
 * ```
 *
 * A client that comes back has no credit for the time it was away: its counter starts at the virtual time, which advances by
 * the service given divided by the clients that are there. Since new clients start at it and it never stops, each waiting
 * request is first at some time.
 */
export class FairQueue<R> {
  readonly #clients = new Map<string | undefined, Client<R>>();
  readonly #queued = new Heap<Client<R>>((a, b) => a.rank < b.rank || (a.rank === b.rank && a.arrival < b.arrival));
  /** Clients without requests whose counters are ahead of the virtual time, by counter. */
  readonly #absent = new Heap<Client<R>>((a, b) => a.service < b.service);
  #virtualTime = 0;
  #present = 0;
  #size = 0;

  /** Requests that wait. */
  get size(): number {
    return this.#size;
  }

  /** Counts one more request of a client. */
  enter(key: string | undefined): Client<R> {
    let client = this.#clients.get(key);
    if (!client) {
      client = new Client(key, this.#virtualTime);
      this.#clients.set(key, client);
    }
    if (client.requests++ === 0) {
      if (client.heapIndex >= 0) this.#absent.remove(client);
      this.#present++;
    }
    return client;
  }

  /** A request of the client is over, and does not wait any more. */
  leave(client: Client<R>): void {
    if (--client.requests > 0) return;
    this.#present--;
    if (client.service > this.#virtualTime) this.#absent.add(client);
    else this.#clients.delete(client.key);
  }

  /** The client was served: its request holds its first `tokens` tokens now. Each token is charged once. */
  charge(entry: Entry<R>, tokens: number): void {
    const { client, promptTokens, chargedTokens } = entry;
    if (tokens <= chargedTokens) return;
    const prompt = Math.max(0, Math.min(tokens, promptTokens) - chargedTokens);
    const cost = prompt + GENERATED_WEIGHT * (tokens - chargedTokens - prompt);
    entry.chargedTokens = tokens;
    client.service += cost;
    this.#virtualTime += cost / this.#present;
    for (let first = this.#absent.first; first && first.service <= this.#virtualTime; first = this.#absent.first) {
      this.#absent.remove(first);
      this.#clients.delete(first.key);
    }
  }

  add(entry: Entry<R>): void {
    const { client } = entry;
    client.waiting.add(entry);
    this.#size++;
    if (client.waiting.size === 1) {
      rank(client);
      this.#queued.add(client);
    } else if (client.waiting.first === entry) {
      rank(client);
      this.#queued.update(client);
    }
  }

  remove(entry: Entry<R>): void {
    const { client } = entry;
    client.waiting.remove(entry);
    this.#size--;
    if (client.waiting.size === 0) {
      this.#queued.remove(client);
    } else {
      rank(client);
      this.#queued.update(client);
    }
  }

  /** Who is admitted next. */
  get first(): Entry<R> | undefined {
    for (;;) {
      const client = this.#queued.first;
      if (!client) return undefined;
      // Counters move at every step, places in the heap only here: what was served meanwhile sinks when it comes up.
      if (client.rank === rankOf(client)) return client.waiting.first;
      rank(client);
      this.#queued.update(client);
    }
  }

  /** Those that wait, in no useful order. */
  *values(): IterableIterator<Entry<R>> {
    for (const client of this.#queued.values()) yield* client.waiting.values();
  }

  /** Clients that are remembered: those with requests, and those that had more than their share. */
  get clientCount(): number {
    return this.#clients.size;
  }
}

function rankOf<R>(client: Client<R>): number {
  return client.service + client.waiting.first!.offset;
}

function rank<R>(client: Client<R>): void {
  client.rank = rankOf(client);
  client.arrival = client.waiting.first!.arrival;
}
