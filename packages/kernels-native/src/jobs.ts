import { addon, type JobId } from "./addon.js";
import { callNative, fromNative, KernelError } from "./error.js";

/** The jobs of a device that have not ended. */
export class Jobs {
  readonly #running = new Set<JobId>();
  readonly #toCancel = new WeakMap<AbortSignal, Set<JobId>>();
  readonly #toFinish = new WeakMap<AbortSignal, Set<JobId>>();
  #whenIdle: (() => void) | undefined;

  /**
   * Starts a job and settles with it. Aborting the signal asks the job to stop: it then fails with `cancelled`. Aborting
   * `enough` asks it to end with the step that runs.
   */
  start<T>(
    start: (callback: (error: Error | null, result: T) => void) => JobId,
    signal?: AbortSignal,
    enough?: AbortSignal,
  ): Promise<T> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) {
        throw new KernelError("cancelled", "the signal was aborted before the call", { cause: signal.reason });
      }
      const stopped = signal && startedWith(this.#toCancel, signal, (id) => addon().cancelJob(id));
      const ended = enough && startedWith(this.#toFinish, enough, (id) => addon().finishJob(id));
      const id = callNative(() =>
        start((error, result) => {
          stopped?.delete(id);
          ended?.delete(id);
          this.#running.delete(id);
          if (this.#running.size === 0) this.#whenIdle?.();
          if (error === null) resolve(result);
          else reject(fromNative(error, signal?.reason));
        }),
      );
      this.#running.add(id);
      stopped?.add(id);
      ended?.add(id);
    });
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

/**
 * The jobs that were started with this signal and get `act` when it is aborted. It is listened to once: an engine gives one
 * signal to all its steps, and a listener for each is a quarter of what a step costs the JavaScript thread.
 */
function startedWith(
  known: WeakMap<AbortSignal, Set<JobId>>,
  signal: AbortSignal,
  act: (id: JobId) => void,
): Set<JobId> {
  const found = known.get(signal);
  if (found !== undefined) return found;
  const jobs = new Set<JobId>();
  signal.addEventListener("abort", () => jobs.forEach(act), { once: true });
  known.set(signal, jobs);
  return jobs;
}
