import type { EngineJob } from "./job.js";

/** Measures what its only argument says. Each engine is imported only where it runs. */
async function measure(job: EngineJob): Promise<unknown> {
  switch (job.measure) {
    case "blocks":
      return (await import("./blocks.js")).measureBlocks(job.rounds);
    case "schedule":
      return (await import("./schedule.js")).measureSchedule(job.rounds);
    case "steps":
      return (await import("./niwaki.js")).measureSteps(job.path, job.threads, job.workload);
    case "prefix":
      return (await import("./niwaki.js")).measurePrefix(job.path, job.threads, job.workload);
    case "arrival":
      return (await import("./niwaki.js")).measureArrival(job.path, job.threads, job.workload);
    case "shared": {
      if (job.engine === "niwaki")
        return (await import("./niwaki.js")).measureShared(job.path, job.threads, job.workload);
      const { measureSharedPeer } = await import("./node-llama-cpp.js");
      return measureSharedPeer(job.path, job.threads, job.workload, job.engine === "node-llama-cpp with states");
    }
  }
}

measure(JSON.parse(process.argv[2]!) as EngineJob).then((report) => console.log(JSON.stringify(report)));
