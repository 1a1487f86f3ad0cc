import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { isMainThread, parentPort, Worker } from "node:worker_threads";
import { answerMessages } from "../companion.js";
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

/** Bytes a second, of the median pass. */
async function measure(workers: readonly Worker[]): Promise<number> {
  const passes = workers.map(async (worker): Promise<Passes> => (await once(worker, "message"))[0]);
  const task: Task = { threads: workers.length, started: new Int32Array(new SharedArrayBuffer(4)) };
  for (const worker of workers) worker.postMessage(task);
  const results = await Promise.all(passes);
  const rates = Array.from({ length: PASSES }, (_, pass) => {
    const begin = Math.min(...results.map((passes) => passes[pass]![0]));
    const end = Math.max(...results.map((passes) => passes[pass]![1]));
    return (workers.length * BYTES * 1e9) / (end - begin);
  });
  return median(rates);
}

/** Searching for a byte that is not there is `memchr`: a native loop of vector loads over the whole buffer. */
function read(buffer: Buffer, { threads, started }: Task): Passes {
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

if (isMainThread) {
  let workers: Promise<Worker[]> | undefined;
  const start = async () => {
    const worker = new Worker(fileURLToPath(import.meta.url));
    await once(worker, "message");
    return worker;
  };
  answerMessages<number>(async (threads) => {
    workers ??= Promise.all(Array.from({ length: threads }, start));
    return measure(await workers);
  });
} else {
  const buffer = Buffer.allocUnsafeSlow(BYTES).fill(1);
  parentPort!.on("message", (task: Task) => parentPort!.postMessage(read(buffer, task)));
  parentPort!.postMessage("filled");
}
