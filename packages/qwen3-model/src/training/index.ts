export type { ChatConversation } from "./chat-data.js";
export { TrainingError, type TrainingErrorCode } from "./error.js";
export { LoraTrainer, type TrainingProgress, type TrainOptions } from "./lora-trainer.js";
export type { TrainerOptions } from "./trainer-options.js";
