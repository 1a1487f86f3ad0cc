export type { ChatConversation } from "./training/chat-data.js";
export { TrainingError, type TrainingErrorCode } from "./training/error.js";
export { LoraTrainer, type TrainingProgress, type TrainOptions } from "./training/lora-trainer.js";
export type { TrainerOptions } from "./training/trainer-options.js";
