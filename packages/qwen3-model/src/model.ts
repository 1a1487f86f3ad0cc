import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { rename, rm, writeFile } from "node:fs/promises";
import { GgufFile } from "@niwaki/gguf";
import {
  type Backend,
  Device,
  type KvCache,
  type KvType,
  MappedFile,
  type Matrix,
  type Plan,
} from "@niwaki/kernels-native";
import { readBaseShape } from "@niwaki/lora";
import type { Policy } from "@niwaki/prefill-scheduler";
import { type ChatMessage, Tokenizer } from "@niwaki/tokenizer";
import { type AdapterChoice, type AdapterOptions, Adapters, checkAdapterOptions } from "./adapters.js";
import { Chat } from "./chat.js";
import type { Qwen3Config } from "./config.js";
import { Engine } from "./engine.js";
import type { Statistics, StepRecord } from "./engine-statistics.js";
import { ModelError } from "./error.js";
import { examineModel } from "./examine.js";
import { generation, type Piece } from "./generation.js";
import {
  checkChoices,
  checkMaxTokens,
  checkPriority,
  checkSampling,
  checkStop,
  type GenerateOptions,
  invalidOption,
  type Prompt,
} from "./options.js";
import { encodeModel } from "./plan.js";
import { loadWeights, projections } from "./weights.js";

export interface LoadOptions {
  /** Tokens of context for one answer; 8,192 or what the model was made for, if that is less. */
  contextLength?: number;
  /** Tokens that the KV cache holds for all answers together; `contextLength` if absent. */
  kvCacheTokens?: number;
  /** Number type of the KV cache: "f16" (the default), "f32", or "q8" (8 bits, half the memory and reading of "f16"). */
  kvType?: KvType;
  /** Most tokens of one prompt in a step. 256 if absent. */
  chunkSize?: number;
  /** Answers that run together; more wait their turn. 64 if absent. */
  maxSequences?: number;
  /** What steps are made of while some answers have prompts to compute and others run; "interleaved" if absent. */
  policy?: Policy;
  /** Milliseconds between two tokens of an answer that prompts of others should not exceed; no limit if absent. */
  targetMilliseconds?: number;
  /**
   * While nobody waits, a token does not wait for the engine to take the one before, and tokens that take so many
   * milliseconds at most come together, which makes those of a small model up to a tenth faster; 0: one by one. 50 if absent,
   * and no more than `targetMilliseconds`.
   */
  burstMilliseconds?: number;
  /** The memory for adapters that run; taken when the first is loaded. */
  adapters?: AdapterOptions;
  /** Told of every step when it has ended. */
  onStep?: (step: StepRecord) => void;
  /**
   * Where the model runs: "cpu"; "cuda", an NVIDIA GPU; or "auto", a GPU if there is one that the kernels run on, and else the
   * CPU. "cpu", or what the environment variable NIWAKI_BACKEND names, if absent.
   */
  backend?: Backend | "auto";
  /** Which GPU; the first that is usable, if absent. */
  gpu?: number;
  /** CPU threads; one per core if absent. Not for "cuda". */
  threads?: number;
  /**
   * Kernels for an instruction set, "avx512vbmi", "avx512", "avx2", "neon" or "portable"; the best that the machine has, if
   * absent. Not for "cuda".
   */
  tier?: string;
  /** Gives up loading. */
  signal?: AbortSignal;
  /** Bytes of weights loaded, of all. */
  onProgress?: (loaded: number, total: number) => void;
}

/** What a model runs on. */
export interface DeviceInfo {
  readonly backend: Backend;
  /** Of the processor, such as "NVIDIA H200". */
  readonly name: string;
  /** Threads of a CPU, multiprocessors of a GPU. */
  readonly threads: number;
  /** The kernels' instruction set; "cuda" on a GPU. */
  readonly tier: string;
}

const BLOCK_SIZE = 16;

/** A loaded model. One engine runs all of its answers, in as many steps as there are tokens in the longest. */
export class Qwen3Model {
  readonly config: Qwen3Config;
  readonly tokenizer: Tokenizer;
  /** Tokens of context for one answer. */
  readonly contextLength: number;
  /** LoRA adapters, for the option `adapter` of an answer. */
  readonly adapters: Adapters;
  readonly #engine: Engine;
  readonly #owned: { device: Device; plan: Plan; kv: KvCache; matrices: Matrix[] };
  readonly #stopIds: ReadonlySet<number>;
  readonly #file: GgufFile;
  #disposed: Promise<void> | undefined;

  private constructor(
    config: Qwen3Config,
    tokenizer: Tokenizer,
    owned: { device: Device; plan: Plan; kv: KvCache; matrices: Matrix[] },
    engine: Engine,
    contextLength: number,
    file: GgufFile,
    adapters: Adapters,
  ) {
    this.#file = file;
    this.adapters = adapters;
    this.config = config;
    this.tokenizer = tokenizer;
    this.contextLength = contextLength;
    this.#owned = owned;
    this.#engine = engine;
    this.#stopIds = new Set(tokenizer.endOfTurnTokenIds);
  }

  /**
   * Loads a Qwen3 GGUF: reads its header, checks all of it, and repacks the weights for this machine.
   * @throws GgufError for a file that is broken, TokenizerError for its vocabulary, ModelError for a model that cannot
   * be run or an option out of range, KernelError for weights that are not finite or memory that there is not.
   */
  static async load(path: string, options: LoadOptions = {}): Promise<Qwen3Model> {
    const file = await GgufFile.open(path, options.signal === undefined ? {} : { signal: options.signal });
    const { config, tokenizer: vocabulary, problems } = examineModel(file);
    if (config === null || vocabulary === null || problems.length > 0) throw problems[0];
    const limits = readLimits(options, config);
    checkAdapterOptions(options.adapters);
    const { contextLength, chunkSize, maxSequences } = limits;
    const { backend, gpu, threads, tier } = options;
    const device = Device.open({
      ...(backend === undefined ? {} : { backend }),
      ...(gpu === undefined ? {} : { gpu }),
      ...(threads === undefined ? {} : { threads }),
      ...(tier === undefined ? {} : { tier }),
    });
    try {
      const mapping = MappedFile.open(path);
      const loading = loadWeights(device, file, mapping, config, options).finally(() => mapping.dispose());
      // The vocabulary is read while the device packs. A failure of either is thrown below, once.
      loading.catch(() => {});
      const tokenizer = new Tokenizer(vocabulary);
      const { weights, matrices } = await loading;
      const blockCount = Math.ceil(limits.kvCacheTokens / BLOCK_SIZE);
      const kv = device.createKvCache({
        layers: config.layers,
        kvHeads: config.kvHeads,
        headDim: config.headDim,
        blockSize: BLOCK_SIZE,
        blocks: blockCount,
        type: options.kvType ?? "f16",
      });
      const maxRows = chunkSize + maxSequences;
      const plan = encodeModel(device, config, weights, kv, { maxRows, blockSize: BLOCK_SIZE });
      const engine = new Engine(plan, {
        vocabulary: config.vocabulary,
        blockSize: BLOCK_SIZE,
        blockCount,
        contextLength,
        chunkSize,
        maxRows,
        maxSequences,
        storage: {
          blockCount,
          blockBytes: kv.blockByteLength,
          copyBlock: (from, to) => kv.copyBlock(from, to),
          readBlock: (block) => kv.readBlock(block),
          writeBlock: (block, bytes) => kv.writeBlock(block, bytes),
        },
        policy: options.policy ?? "interleaved",
        targetMilliseconds: options.targetMilliseconds,
        burstMilliseconds: limits.burstMilliseconds,
        onStep: options.onStep,
      });
      const adapters = new Adapters(device, plan, readBaseShape(file), projections(config), options.adapters ?? {});
      return new Qwen3Model(config, tokenizer, { device, plan, kv, matrices }, engine, contextLength, file, adapters);
    } catch (error) {
      await device.dispose();
      throw error;
    }
  }

  /**
   * Streams text that continues raw text or token ids, or answers messages through the file's chat template.
   * @throws ModelError `context-exceeded`, `empty-prompt`, `invalid-token`, `invalid-option`, `disposed`.
   */
  generate(prompt: Prompt, options: GenerateOptions = {}): AsyncGenerator<Piece, void, undefined> {
    this.#checkUsable();
    const promptIds = this.promptIds(prompt, options);
    this.#checkLength(promptIds.length, this.contextLength - 1);
    return generation(this.#engine, {
      promptIds,
      sampling: checkSampling(options, this.config.vocabulary),
      n: checkChoices(options.n),
      maxTokens: Math.min(checkMaxTokens(options.maxTokens), this.contextLength - promptIds.length),
      stopIds: this.#stopIds,
      stops: checkStop(options.stop),
      createDecoder: () => this.tokenizer.stream({ skipControlTokens: true }),
      signal: options.signal,
      priority: checkPriority(options.priority),
      client: options.client,
      cacheSalt: options.cacheSalt,
      acquire: this.adapters.choose(options.adapter),
    });
  }

  /** A conversation over the file's chat template; `options` hold for every answer. */
  chat(options: GenerateOptions & { messages?: readonly ChatMessage[] } = {}): Chat {
    return new Chat(this, options);
  }

  /**
   * The tokens that `generate` would start from.
   * @throws ModelError `empty-prompt`, `invalid-token`; TokenizerError for a template that fails.
   */
  promptIds(prompt: Prompt, options: Pick<GenerateOptions, "thinking" | "tools" | "trustContents"> = {}): number[] {
    const ids = this.#encode(prompt, options);
    if (ids.length === 0) {
      throw new ModelError("empty-prompt", "The prompt is empty: give at least one token to continue from.");
    }
    for (const id of ids) {
      if (!Number.isInteger(id) || id < 0 || id >= this.config.vocabulary) {
        throw new ModelError(
          "invalid-token",
          `The prompt has the token id ${id}; this model has ids from 0 to ${this.config.vocabulary - 1}.`,
          { value: id },
        );
      }
    }
    return ids;
  }

  /**
   * Gives the logits of every position of a text, chunk by chunk: [rows, vocabulary] from position `start` on. The next
   * chunk runs when `onRows` is done; other answers wait for it too. With an adapter, or a mix, as in `generate`.
   * @throws ModelError `context-exceeded`, `empty-prompt`, `invalid-token`, `disposed`; whatever `onRows` throws.
   */
  async logits(
    tokens: readonly number[],
    onRows: (start: number, logits: Float32Array) => void | Promise<void>,
    options: { adapter?: AdapterChoice } = {},
  ): Promise<void> {
    this.#checkUsable();
    const promptIds = this.promptIds(tokens);
    this.#checkLength(promptIds.length, this.contextLength);
    const adapters = await this.adapters.choose(options.adapter)?.();
    try {
      await new Promise<void>((resolve, reject) => {
        this.#engine.submit({
          promptIds,
          adapters,
          onLogits: onRows,
          onEnd: (error) => (error === undefined ? resolve() : reject(error)),
        });
      });
    } finally {
      adapters?.release();
    }
  }

  /**
   * Computes a prompt and writes its keys and values to a file, in whole blocks of 16 tokens, so that a later process can
   * begin with them (`restorePrefix`).
   * @returns the tokens written.
   * @throws ModelError `context-exceeded`, `empty-prompt`, `invalid-token`, `disposed`.
   */
  async savePrefix(
    prompt: Prompt,
    path: string,
    options: Pick<GenerateOptions, "thinking" | "tools" | "trustContents" | "cacheSalt"> = {},
  ): Promise<number> {
    this.#checkUsable();
    const promptIds = this.promptIds(prompt, options);
    this.#checkLength(promptIds.length, this.contextLength);
    const snapshot = this.#engine.snapshot(promptIds, options.cacheSalt ?? "", await this.#fingerprint());
    const unfinished = `${path}.${process.pid}.part`;
    try {
      await writeFile(unfinished, snapshot);
      await rename(unfinished, path);
    } catch (error) {
      await rm(unfinished, { force: true });
      throw error;
    }
    return promptIds.length - (promptIds.length % BLOCK_SIZE);
  }

  /**
   * Puts what `savePrefix` wrote into the cache: prompts that begin with it find it there.
   * @returns the tokens read, or null when the cache has no room for them now.
   * @throws PagedKvError for a file that is damaged, or of another model, type of KV cache or backend.
   */
  async restorePrefix(path: string): Promise<number | null> {
    this.#checkUsable();
    return await this.#engine.restore(createReadStream(path), await this.#fingerprint());
  }

  /** What the model runs on. */
  get device(): DeviceInfo {
    const { backend, name, threads, tier } = this.#owned.device;
    return { backend, name, threads, tier };
  }

  /** What the engine has done so far, and how it and its cache stand. */
  statistics(): Statistics {
    return this.#engine.statistics();
  }

  /** Bytes of native memory: the repacked weights, the KV cache, and the activations of a step. None of it grows. */
  memory(): { weights: number; kvCache: number; activations: number } {
    const { plan, kv, matrices } = this.#owned;
    const weights = matrices.reduce((sum, { byteLength }) => sum + byteLength, 0);
    return { weights, kvCache: kv.byteLength, activations: plan.byteLength };
  }

  /**
   * What every block of the KV cache (16 tokens) is doing, for somebody to look at: 0 free, 1 free and cached, 2 held by one
   * answer, 3 held by several.
   */
  blockMap(): Uint8Array {
    return this.#engine.blockMap();
  }

  /** Ends all answers with an error, waits for the running operation to stop, and frees everything. */
  dispose(): Promise<void> {
    this.#disposed ??= this.#dispose();
    return this.#disposed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.dispose();
  }

  async #dispose(): Promise<void> {
    await this.#engine.close(disposedError());
    const { device, plan, kv, matrices } = this.#owned;
    await this.adapters.dispose();
    plan.dispose();
    kv.dispose();
    for (const matrix of matrices) matrix.dispose();
    await device.dispose();
  }

  #encode(prompt: Prompt, options: Pick<GenerateOptions, "thinking" | "tools" | "trustContents">): number[] {
    if (typeof prompt === "string") return this.tokenizer.encode(prompt);
    if (isTokenIds(prompt)) return [...prompt];
    const { thinking, tools, trustContents } = options;
    return this.tokenizer.encodeChat(prompt, {
      ...(thinking === undefined ? {} : { thinking }),
      ...(tools === undefined ? {} : { tools }),
      ...(trustContents === undefined ? {} : { trustContents }),
    });
  }

  /** Names the model and the form of its KV cache: keys and values of another, or of another backend, mean nothing here. */
  async #fingerprint(): Promise<string> {
    const { device, kv } = this.#owned;
    const hash = createHash("sha256").update(JSON.stringify([this.config, kv.shape.type, device.backend]));
    for (const { name, dims } of this.#file.tensors.values()) {
      if (dims.length === 1) hash.update(name).update(await this.#file.readTensor(name));
    }
    return hash.digest("hex");
  }

  #checkLength(tokens: number, most: number): void {
    if (tokens <= most) return;
    throw new ModelError(
      "context-exceeded",
      `The prompt has ${tokens} tokens; with a context of ${this.contextLength} it may have ${most}. ` +
        `Shorten it, or load the model with a larger contextLength (this one was made for ${this.config.contextLength}).`,
      { value: tokens },
    );
  }

  #checkUsable(): void {
    if (this.#disposed !== undefined) throw disposedError();
  }
}

function isTokenIds(prompt: readonly number[] | readonly ChatMessage[]): prompt is readonly number[] {
  return typeof prompt[0] !== "object";
}

function disposedError(): ModelError {
  return new ModelError("disposed", "The model was disposed. Load it again to go on.");
}

/** @throws ModelError `invalid-option`, `context-exceeded`. */
function readLimits(options: LoadOptions, config: Qwen3Config) {
  const positive = (name: "contextLength" | "kvCacheTokens" | "chunkSize" | "maxSequences", absent: number) => {
    const value = options[name] ?? absent;
    if (!Number.isInteger(value) || value < 1) throw invalidOption(name, value, "a whole number from 1 up");
    return value;
  };
  const contextLength = positive("contextLength", Math.min(8192, config.contextLength));
  if (contextLength > config.contextLength) {
    throw invalidOption("contextLength", contextLength, `up to ${config.contextLength}, which the model was made for`);
  }
  const kvCacheTokens = positive("kvCacheTokens", contextLength);
  if (kvCacheTokens < contextLength) {
    throw invalidOption("kvCacheTokens", kvCacheTokens, `at least the contextLength, ${contextLength}`);
  }
  const { burstMilliseconds = 50 } = options;
  if (!(burstMilliseconds >= 0 && burstMilliseconds < Number.POSITIVE_INFINITY)) {
    throw invalidOption("burstMilliseconds", burstMilliseconds, "a finite number from 0 up");
  }
  return {
    contextLength,
    kvCacheTokens,
    burstMilliseconds,
    chunkSize: positive("chunkSize", 256),
    maxSequences: positive("maxSequences", 64),
  };
}
