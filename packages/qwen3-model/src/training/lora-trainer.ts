import { createHash } from "node:crypto";
import { GgufFile } from "@niwaki/gguf";
import { Device, MappedFile, type Matrix, type TrainingPlan } from "@niwaki/kernels-native";
import { LoraAdapter, loraConfig, matrixValues, readBaseShape, writePeftAdapter } from "@niwaki/lora";
import { Tokenizer } from "@niwaki/tokenizer";
import { examineModel } from "../examine.js";
import { loadWeights } from "../weights.js";
import { exampleRows, microBatches } from "./batch.js";
import { chatExamples, readChatData, type TrainingExample } from "./chat-data.js";
import { keptStates, readCheckpoint, type TrainingIdentity, writeCheckpoint } from "./checkpoint.js";
import { TrainingError } from "./error.js";
import { ExampleOrder } from "./example-order.js";
import { encodeTraining } from "./forward.js";
import { cosineRate } from "./schedule.js";
import { checkMaxTokens, checkSettings, type TrainerOptions, type TrainingSettings } from "./trainer-options.js";

/** A step that was taken. */
export interface TrainingProgress {
  /** From 1 on. */
  readonly step: number;
  readonly steps: number;
  /** Mean of -ln p over the tokens that are learned in this step, before it. */
  readonly loss: number;
  readonly learningRate: number;
  /** Before it was clipped. */
  readonly gradientNorm: number;
  /** Tokens of prompts and answers. */
  readonly tokensPerSecond: number;
}

export interface TrainOptions {
  /** Ends the training between two batches; it can go on from the last step that was taken. */
  signal?: AbortSignal;
  onProgress?: (progress: TrainingProgress) => void;
}

/**
 * Trains a LoRA adapter (Hu et al., 2021) of a frozen Qwen3 GGUF on conversations: AdamW, a learning rate that rises and
 * falls along a cosine, gradients clipped by their norm. The weights stay packed as they are in the file. The same data,
 * options and seed give the same bits, on any number of threads and every tier, in one go or resumed.
 */
export class LoraTrainer implements AsyncDisposable {
  /** Steps in all. */
  readonly steps: number;
  /** Answers that are learned. */
  readonly exampleCount: number;
  /** Trained numbers. */
  readonly parameterCount: number;
  readonly #settings: TrainingSettings;
  readonly #examples: readonly TrainingExample[];
  readonly #order: ExampleOrder;
  readonly #start: LoraAdapter;
  readonly #identity: TrainingIdentity;
  readonly #owned: { device: Device; plan: TrainingPlan; matrices: Matrix[] };
  #step = 0;
  #busy = false;
  #disposed: Promise<void> | undefined;

  private constructor(
    settings: TrainingSettings,
    examples: readonly TrainingExample[],
    start: LoraAdapter,
    identity: TrainingIdentity,
    owned: { device: Device; plan: TrainingPlan; matrices: Matrix[] },
  ) {
    this.steps = settings.steps;
    this.exampleCount = examples.length;
    this.parameterCount = owned.plan.parameterCount;
    this.#settings = settings;
    this.#examples = examples;
    this.#order = new ExampleOrder(examples.length, settings.seed);
    this.#start = start;
    this.#identity = identity;
    this.#owned = owned;
  }

  /**
   * Reads the data, loads the model and makes a new adapter (or goes on with that of a checkpoint).
   *
   * @throws TrainingError `invalid-option`, `bad-data`, `bad-checkpoint`; LoraError `bad-config`; ModelError, GgufError,
   * TokenizerError or KernelError for the model
   */
  static async create(path: string, options: TrainerOptions): Promise<LoraTrainer> {
    const { signal } = options;
    const conversations = typeof options.data === "string" ? await readChatData(options.data) : options.data;
    const file = await GgufFile.open(path, signal === undefined ? {} : { signal });
    const { config, tokenizer: vocabulary, problems } = examineModel(file);
    if (config === null || vocabulary === null || problems.length > 0) throw problems[0];
    const examples = chatExamples(conversations, new Tokenizer(vocabulary), {
      thinking: options.thinking,
      maxTokens: checkMaxTokens(options.maxTokens, config.contextLength),
    });
    const settings = checkSettings(options, examples.length);
    const start = LoraAdapter.create(loraConfig(options.lora), readBaseShape(file), settings.seed);
    const identity = {
      model: await modelIdentity(file),
      data: hash(examples.flatMap(({ ids, promptLength }) => [Int32Array.of(ids.length, promptLength), ids])),
      lora: JSON.stringify(start.config),
      settings: JSON.stringify(settings),
    };
    const device = Device.open({
      backend: "cpu", // whatever NIWAKI_BACKEND says: there is no training elsewhere
      ...(options.threads === undefined ? {} : { threads: options.threads }),
      ...(options.tier === undefined ? {} : { tier: options.tier }),
    });
    try {
      const mapping = MappedFile.open(path);
      const loading = loadWeights(device, file, mapping, config, { signal });
      const { weights, matrices } = await loading.finally(() => mapping.dispose());
      const maxSequence = Math.max(...examples.map(exampleRows));
      const maxRows = Math.max(settings.maxRows, maxSequence);
      const plan = encodeTraining(device, config, weights, start, { maxRows, maxSequence });
      const trainer = new LoraTrainer(settings, examples, start, identity, { device, plan, matrices });
      if (options.resume === undefined) await plan.write("parameters", parametersOf(start));
      else await trainer.#resume(options.resume);
      return trainer;
    } catch (error) {
      await device.dispose();
      throw error;
    }
  }

  /** Steps taken. */
  get step(): number {
    return this.#step;
  }

  /**
   * Takes the steps that are left, each when it is asked for; leaving the loop leaves the training as it is then, to go on
   * later.
   *
   * @throws TrainingError `busy`, `disposed`; KernelError `non-finite` when the training diverges, `cancelled` by the
   * signal: the adapter is as it was after the last step
   */
  async *train(options: TrainOptions = {}): AsyncGenerator<TrainingProgress, void, undefined> {
    while (this.#step < this.steps) {
      const progress = await this.#exclusively(() => this.#takeStep(options.signal));
      options.onProgress?.(progress);
      yield progress;
    }
  }

  /** The adapter as it is now. */
  async adapter(): Promise<LoraAdapter> {
    const values = await this.#exclusively(() => this.#owned.plan.read("parameters"));
    let at = 0;
    const take = (count: number) => {
      at += count;
      return values.slice(at - count, at);
    };
    return LoraAdapter.from(this.#start.config, this.#start.shape, ({ rank, inputs, outputs }) => {
      const a = take(rank * inputs);
      return { a, b: take(outputs * rank) };
    });
  }

  /** Writes the adapter as a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`. */
  async save(folder: string): Promise<void> {
    await writePeftAdapter(await this.adapter(), folder);
  }

  /** Writes everything that the next step depends on, for `resume`. */
  async saveCheckpoint(path: string): Promise<void> {
    const { plan } = this.#owned;
    await this.#exclusively(async () => {
      const [parameters, firstMoments, secondMoments] = await Promise.all(keptStates.map((name) => plan.read(name)));
      await writeCheckpoint(path, {
        step: this.#step,
        identity: this.#identity,
        states: { parameters: parameters!, firstMoments: firstMoments!, secondMoments: secondMoments! },
      });
    });
  }

  /** Stops what runs and frees everything. */
  dispose(): Promise<void> {
    this.#disposed ??= this.#dispose();
    return this.#disposed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #dispose(): Promise<void> {
    const { device, plan, matrices } = this.#owned;
    plan.dispose();
    for (const matrix of matrices) matrix.dispose();
    await device.dispose();
  }

  async #resume(path: string): Promise<void> {
    const { plan } = this.#owned;
    const { step, states } = await readCheckpoint(path, this.#identity, plan.parameterCount);
    for (const name of keptStates) await plan.write(name, states[name]);
    this.#step = step;
  }

  async #takeStep(signal: AbortSignal | undefined): Promise<TrainingProgress> {
    const { plan } = this.#owned;
    const { batchSize, maxRows, promptWeight, warmupSteps, steps, learningRate: peak, ...adamW } = this.#settings;
    const step = this.#step + 1;
    const began = performance.now();
    const examples = this.#order.slice(this.#step * batchSize, batchSize).map((index) => this.#examples[index]!);
    const learningRate = cosineRate(step, steps, warmupSteps, peak);
    let loss = 0;
    try {
      for (const batch of microBatches(examples, maxRows, promptWeight)) {
        loss += await plan.accumulate(batch, signal === undefined ? {} : { signal });
      }
    } catch (error) {
      // Of the batches before the one that failed.
      if (this.#disposed === undefined) await plan.write("gradients", new Float32Array(plan.parameterCount));
      throw error;
    }
    const { weightDecay, beta1, beta2, epsilon, maxGradientNorm } = adamW;
    const gradientNorm = await plan.update({
      step,
      learningRate,
      weightDecay,
      beta1,
      beta2,
      epsilon,
      maxGradientNorm,
    });
    this.#step = step;
    const tokens = examples.reduce((sum, { ids }) => sum + ids.length, 0);
    const tokensPerSecond = tokens / ((performance.now() - began) / 1000);
    return { step, steps, loss, learningRate, gradientNorm, tokensPerSecond };
  }

  async #exclusively<T>(run: () => Promise<T>): Promise<T> {
    if (this.#disposed !== undefined) throw new TrainingError("disposed", "The trainer was disposed. Create another.");
    if (this.#busy) throw new TrainingError("busy", "A step is being taken. Wait for it, or save between two steps.");
    this.#busy = true;
    try {
      return await run();
    } finally {
      this.#busy = false;
    }
  }
}

/** In the order of the plan: A, then B, of each target. */
function parametersOf(adapter: LoraAdapter): Float32Array {
  const values = new Float32Array(adapter.parameterCount);
  let at = 0;
  for (const { a, b } of adapter) {
    for (const matrix of [a, b]) {
      const numbers = matrixValues(matrix);
      values.set(numbers, at);
      at += numbers.length;
    }
  }
  return values;
}

/** Names the model: its shapes and its norms, which differ from model to model. */
async function modelIdentity(file: GgufFile): Promise<string> {
  const parts: Uint8Array[] = [];
  for (const { name, dims } of file.tensors.values()) {
    parts.push(new TextEncoder().encode(`${name} ${dims} `));
    if (dims.length === 1) parts.push(await file.readTensor(name));
  }
  return hash(parts);
}

function hash(parts: readonly NodeJS.ArrayBufferView[]): string {
  const sha = createHash("sha256");
  for (const part of parts) sha.update(part);
  return sha.digest("hex");
}
