// A device that nobody disposed must not keep this process alive.
import { busyDevice } from "./busy.mjs";

await busyDevice();
console.log("idle");
