import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { median } from "../statistics.js";

const PASSES = 8;
/** Of each thread: many times any cache. */
const BYTES = 2 ** 29;

interface Task {
  readonly threads: number;
  /** How often a thread came to the start of a pass. */
  readonly started: Int32Array;
}

/** Beginning and end of every pass of a thread, in nanoseconds of the clock that all threads share. */
type Passes = [number, number][];

/** Prints bytes a second, of the median pass. */
async function main(threads: number): Promise<void> {
  const task: Task = { threads, started: new Int32Array(new SharedArrayBuffer(4)) };
  const results = await Promise.all(
    Array.from(
      { length: threads },
      () =>
        new Promise<Passes>((resolve, reject) => {
          const worker = new Worker(fileURLToPath(import.meta.url), { workerData: task });
          worker.once("message", resolve);
          worker.once("error", reject);
        }),
    ),
  );
  const rates = Array.from({ length: PASSES }, (_, pass) => {
    const begin = Math.min(...results.map((passes) => passes[pass]![0]));
    const end = Math.max(...results.map((passes) => passes[pass]![1]));
    return (threads * BYTES * 1e9) / (end - begin);
  });
  console.log(JSON.stringify(median(rates)));
}

/** Searching for a byte that is not there is `memchr`: a native loop of vector loads over the whole buffer. */
function work({ threads, started }: Task): Passes {
  const buffer = Buffer.allocUnsafeSlow(BYTES).fill(1);
  return Array.from({ length: PASSES }, (_, pass) => {
    Atomics.add(started, 0, 1);
    while (Atomics.load(started, 0) < threads * (pass + 1));
    const begin = nanoseconds();
    if (buffer.indexOf(2) !== -1) throw new Error("the buffer is not what was written");
    return [begin, nanoseconds()];
  });
}

function nanoseconds(): number {
  return Number(process.hrtime.bigint());
}

if (isMainThread) main(Number(process.argv[2]));
else parentPort!.postMessage(work(workerData as Task));
