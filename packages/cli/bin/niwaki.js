#!/usr/bin/env node
import { runCli } from "../dist/index.js";

runCli(process.argv.slice(2));
