import type { BlockLedger } from "./block-ledger.js";
import { type Entry, isMoreUrgent } from "./entry.js";
import { SchedulerError } from "./errors.js";
import type { FairQueue } from "./fair-queue.js";
import type { RunningList } from "./running-list.js";

/**
 * Checks the queues of a scheduler against each other and against all that it knows.
 * @throws SchedulerError `CORRUPT` at the first difference.
 */
export function checkQueues<R>(
  known: ReadonlyMap<R, Entry<R>>,
  running: RunningList<R>,
  waiting: FairQueue<R>,
  blocks: BlockLedger<R>,
): void {
  const queued = running.length + waiting.size;
  if (queued !== known.size) throw new SchedulerError("CORRUPT", `${queued} queued, ${known.size} known`, queued);
  let owed = 0;
  for (let i = 0; i < running.length; i++) {
    const entry = running.at(i);
    checkEntry(known, entry, "running");
    if (i > 0 && !isMoreUrgent(running.at(i - 1), entry)) {
      throw new SchedulerError("CORRUPT", "the running requests are not in order of urgency", entry.request);
    }
    owed += entry.owedBlocks;
  }
  for (const entry of waiting.values()) checkEntry(known, entry, "waiting");
  if (owed !== blocks.owedBlocks) {
    throw new SchedulerError("CORRUPT", `${owed} blocks are owed, ${blocks.owedBlocks} are counted`, owed);
  }
}

function checkEntry<R>(known: ReadonlyMap<R, Entry<R>>, entry: Entry<R>, state: "waiting" | "running"): void {
  const { request, computedTokens, totalTokens } = entry;
  if (known.get(request) !== entry) throw new SchedulerError("CORRUPT", "a queued request is unknown", request);
  if (entry.state !== state) {
    throw new SchedulerError("CORRUPT", `a request marked ${entry.state} stands among the ${state}`, request);
  }
  if (computedTokens > totalTokens || (state === "waiting" && computedTokens > 0)) {
    throw new SchedulerError("CORRUPT", `${computedTokens} of ${totalTokens} computed while ${state}`, request);
  }
}
