import { addon, type JobId } from "./addon.js";
import { callNative, fromNative, KernelError } from "./error.js";

/** The jobs of a device that have not ended. */
export class Jobs {
  readonly #running = new Set<JobId>();
  readonly #bySignal = new WeakMap<AbortSignal, Set<JobId>>();
  #whenIdle: (() => void) | undefined;

  /** Starts a job and settles with it. Aborting the signal asks the job to stop: it then fails with `cancelled`. */
  start<T>(start: (callback: (error: Error | null, result: T) => void) => JobId, signal?: AbortSignal): Promise<T> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        throw new KernelError("cancelled", "the signal was aborted before the call", { cause: signal.reason });
      }
      const beside = signal && this.#startedWith(signal);
      const id = callNative(() =>
        start((error, result) => {
          beside?.delete(id);
          this.#running.delete(id);
          if (this.#running.size === 0) this.#whenIdle?.();
          if (error === null) resolve(result);
          else reject(fromNative(error, signal?.reason));
        }),
      );
      this.#running.add(id);
      beside?.add(id);
    });
  }

  /**
   * The jobs that this signal stops. It is listened to once: an engine gives one signal to all its steps, and a listener
   * for each is a quarter of what a step costs the JavaScript thread.
   */
  #startedWith(signal: AbortSignal): Set<JobId> {
    const known = this.#bySignal.get(signal);
    if (known !== undefined) return known;
    const jobs = new Set<JobId>();
    const cancel = () => {
      for (const id of jobs) addon().cancelJob(id);
    };
    signal.addEventListener("abort", cancel, { once: true });
    this.#bySignal.set(signal, jobs);
    return jobs;
  }

  /** Asks every job to stop and waits until all have. */
  async cancelAll(): Promise<void> {
    if (this.#running.size === 0) return;
    const idle = new Promise<void>((resolve) => {
      this.#whenIdle = resolve;
    });
    for (const id of this.#running) addon().cancelJob(id);
    await idle;
  }
}
