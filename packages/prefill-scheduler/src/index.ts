export { type Chunk, planChunks } from "./chunks.js";
export { SchedulerError, type SchedulerErrorCode } from "./errors.js";
export {
  type BlockBudget,
  type Progress,
  type Schedulable,
  type ScheduledChunk,
  Scheduler,
  type SchedulerOptions,
  type StepPlan,
} from "./scheduler.js";
