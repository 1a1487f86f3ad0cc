import type { AdaptersJob } from "./job.js";
import { measurePairs, measureSwaps } from "./measure.js";

/** Measures what its only argument says. */
function measure(job: AdaptersJob): Promise<unknown> {
  return job.measure === "pairs" ? measurePairs(job) : measureSwaps(job);
}

measure(JSON.parse(process.argv[2]!) as AdaptersJob).then((report) => console.log(JSON.stringify(report)));
