import { LoraError } from "./errors.js";
import type { LoraAdapter } from "./lora-adapter.js";
import type { LoraTarget } from "./lora-target.js";
import type { LoraModule } from "./modules.js";

/** An adapter under its name. */
export interface RegisteredAdapter {
  readonly name: string;
  readonly adapter: LoraAdapter;
  /** Another one for each registration, `pirate#2`: what was computed with an adapter is not that of a later namesake. */
  readonly key: string;
}

/**
 * Adapters in host memory by name, and what they do to each module.
 */
export class LoraRegistry {
  /** Bytes that all adapters together may take. */
  readonly maxBytes: number;
  readonly #byName = new Map<string, RegisteredAdapter>();
  #byteLength = 0;
  #registrations = 0;

  /** @param maxBytes no limit unless given */
  constructor({ maxBytes = Number.POSITIVE_INFINITY }: { maxBytes?: number } = {}) {
    if (!(maxBytes >= 0))
      throw new LoraError("invalid-argument", `maxBytes must not be negative, got ${maxBytes}`, { value: maxBytes });
    this.maxBytes = maxBytes;
  }

  /** Bytes that the adapters take. */
  get byteLength(): number {
    return this.#byteLength;
  }

  /** @throws LoraError `invalid-argument`, `name-taken`, `over-budget`; nothing has changed then */
  add(name: string, adapter: LoraAdapter): RegisteredAdapter {
    if (typeof name !== "string" || name.trim() === "") {
      throw new LoraError("invalid-argument", `an adapter needs a name, got ${JSON.stringify(name)}`, { value: name });
    }
    if (this.#byName.has(name)) {
      throw new LoraError("name-taken", `an adapter is called ${JSON.stringify(name)} already; remove it first`, {
        value: name,
      });
    }
    const bytes = this.#byteLength + adapter.byteLength;
    if (bytes > this.maxBytes) {
      throw new LoraError(
        "over-budget",
        `with ${JSON.stringify(name)} the adapters would take ${bytes} bytes, more than the allowed ${this.maxBytes}; remove another first`,
        { value: bytes },
      );
    }
    const registered = { name, adapter, key: `${name}#${++this.#registrations}` };
    this.#byName.set(name, registered);
    this.#byteLength = bytes;
    return registered;
  }

  /** @throws LoraError `unknown-adapter` */
  get(name: string): RegisteredAdapter {
    const registered = this.#byName.get(name);
    if (registered !== undefined) return registered;
    const known = [...this.#byName.keys()].slice(0, 20).map((other) => JSON.stringify(other));
    throw new LoraError(
      "unknown-adapter",
      `no adapter is called ${JSON.stringify(name)}; ${known.length === 0 ? "none is loaded" : `there are ${known.join(", ")}`}`,
      { value: name },
    );
  }

  has(name: string): boolean {
    return this.#byName.has(name);
  }

  /** @throws LoraError `unknown-adapter` */
  remove(name: string): RegisteredAdapter {
    const registered = this.get(name);
    this.#byName.delete(name);
    this.#byteLength -= registered.adapter.byteLength;
    return registered;
  }

  /** All adapters, in the order in which they were added. */
  list(): RegisteredAdapter[] {
    return [...this.#byName.values()];
  }

  /** What each adapter does to a module; adapters that leave it alone are not in the list. */
  targets(layer: number, module: LoraModule): (RegisteredAdapter & { readonly target: LoraTarget })[] {
    return this.list().flatMap((registered) => {
      const target = registered.adapter.target(layer, module);
      return target === undefined ? [] : [{ ...registered, target }];
    });
  }
}
