// Nothing but a run keeps this process alive; it must reach the end of it.
import { busyDevice } from "./busy.mjs";

busyDevice()
  .then(({ run }) => run())
  .then(() => console.log("the run ended"));
