import { launch } from "./launch.mjs";
import { cliArguments } from "./start-arguments.mjs";

const terminal = Boolean(process.stdin.isTTY && process.stdout.isTTY);
launch("packages/cli/bin/niwaki.js", cliArguments(process.argv.slice(2), terminal));
