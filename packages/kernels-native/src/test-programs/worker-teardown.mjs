// Workers that end in every way with a run in flight, while the main thread has a run of its own.
import { isMainThread, parentPort, Worker, workerData } from "node:worker_threads";
import { busyDevice } from "./busy.mjs";

const endings = ["terminate", "exit", "throw", "done", "dispose"];

if (isMainThread) {
  const own = await busyDevice();
  const running = own.run();
  await Promise.all(
    endings.map(
      (ending) =>
        new Promise((resolve, reject) => {
          const worker = new Worker(new URL(import.meta.url), { workerData: ending });
          worker.on("message", () => ending === "terminate" && worker.terminate());
          worker.on("error", (error) => ending !== "throw" && reject(error));
          worker.on("exit", (code) => {
            console.log(ending, code);
            resolve();
          });
        }),
    ),
  );
  const { samples } = await running;
  console.log("main", samples.length);
} else {
  const { device, run } = await busyDevice();
  const running = run();
  running.catch(() => {});
  run().catch(() => {});
  setTimeout(() => {
    parentPort.postMessage("running");
    if (workerData === "exit") process.exit(3);
    if (workerData === "throw") throw new Error("on purpose");
    if (workerData === "dispose") device.dispose();
  }, 20);
}
