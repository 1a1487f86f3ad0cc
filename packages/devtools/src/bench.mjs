import { launch } from "./launch.mjs";

launch("packages/bench/dist/main.js", process.argv.slice(2));
