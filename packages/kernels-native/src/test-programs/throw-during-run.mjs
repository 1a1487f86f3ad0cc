// Dies of an exception with a run in flight.
import { busyDevice } from "./busy.mjs";

const { run } = await busyDevice();
run();
setTimeout(() => {
  throw new Error("unhandled on purpose");
}, 20);
