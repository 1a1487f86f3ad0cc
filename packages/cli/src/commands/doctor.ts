import { Command } from "commander";
import { describeFindings, findings } from "../findings.js";

export function doctorCommand(): Command {
  return new Command("doctor")
    .description("Say what models can run on here, the CPU and GPUs, and what is missing.")
    .option("--json", "print one JSON object")
    .action(doctor);
}

function doctor(flags: { json?: boolean }): void {
  const found = findings();
  console.log(flags.json ? JSON.stringify(found, null, 2) : describeFindings(found));
  if (found.problem !== undefined) process.exitCode = 1;
}
