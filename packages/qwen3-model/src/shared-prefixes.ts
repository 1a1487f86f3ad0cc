import type { Sequence } from "@niwaki/paged-kv";

interface Prompt {
  readonly tokens: readonly number[];
  readonly promptTokens: number;
  readonly priority: number | undefined;
  readonly sequence: Sequence;
}

/**
 * Prompts that begin alike and come together: the first computes what they share, the others wait for just that part and
 * then find it in the prefix cache.
 */
export class SharedPrefixes<P extends Prompt> {
  readonly #blockSize: number;
  /** Prompts under way that others may wait for. */
  readonly #leaders = new Set<P>();
  readonly #held = new Map<P, { leader: P; tokens: number }>();

  constructor(blockSize: number) {
    this.#blockSize = blockSize;
  }

  /** Whether this prompt should wait for another that is not less urgent; if not, others may wait for it. */
  hold(prompt: P): boolean {
    let leader: P | undefined;
    let most = 0;
    for (const other of this.#leaders) {
      const shared = this.#shared(prompt, other);
      // Of several that come as far, one that has computed it already: then there is nothing to wait for.
      const computed = Math.min(shared, other.sequence.length);
      if (shared < most || (shared === most && computed < shared)) continue;
      most = shared;
      leader = computed < shared && (other.priority ?? 0) <= (prompt.priority ?? 0) ? other : undefined;
    }
    if (leader === undefined) this.#leaders.add(prompt);
    else this.#held.set(prompt, { leader, tokens: most });
    return leader !== undefined;
  }

  /** Prompts that need not wait any longer: what they waited for is computed, or will not be. */
  release(): P[] {
    const released: P[] = [];
    for (const [prompt, { leader, tokens }] of this.#held) {
      if (leader.sequence.length < tokens && this.#leaders.has(leader)) continue;
      this.#held.delete(prompt);
      // Its leader may have gone before it came so far: then the next one leads.
      if (!this.hold(prompt)) released.push(prompt);
    }
    for (const leader of this.#leaders) {
      if (leader.sequence.length >= leader.promptTokens) this.#leaders.delete(leader);
    }
    return released;
  }

  /** The prompt ended. */
  forget(prompt: P): void {
    this.#leaders.delete(prompt);
    this.#held.delete(prompt);
  }

  /** Tokens that two prompts share, in whole blocks, at most all but the last token. */
  #shared(a: P, b: P): number {
    if (a.sequence.extraKeys !== b.sequence.extraKeys) return 0;
    const most = Math.min(a.tokens.length - 1, b.promptTokens);
    let length = 0;
    while (length < most && a.tokens[length] === b.tokens[length]) length++;
    return length - (length % this.#blockSize);
  }
}
