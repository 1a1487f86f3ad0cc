export type { BlockBudget, BlockSupply } from "./block-budget.js";
export {
  type AttentionShape,
  type Chunk,
  type ChunkOptions,
  type PromptChunk,
  type PromptMemory,
  planChunks,
  promptMemory,
} from "./chunks.js";
export type { StepCost } from "./cost-model.js";
export type { Progress } from "./entry.js";
export { SchedulerError, type SchedulerErrorCode } from "./errors.js";
export { type Schedulable, Scheduler } from "./scheduler.js";
export type { Policy, SchedulerOptions } from "./scheduler-options.js";
export { type SimulationOptions, simulate, type TraceRequest } from "./simulate.js";
export type { Percentiles, RequestRecord, ServiceLevel, SimulationReport, StepRecord } from "./simulation-report.js";
export type { ScheduledChunk, StepPlan } from "./step-plan.js";
