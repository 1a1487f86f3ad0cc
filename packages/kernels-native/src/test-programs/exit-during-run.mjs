// Leaves by process.exit() with runs in flight and waiting.
import { busyDevice } from "./busy.mjs";

const { run } = await busyDevice();
run();
run();
setTimeout(() => process.exit(7), 20);
