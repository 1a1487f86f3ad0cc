import { type BaseShape, checkShape } from "./base-shape.js";
import { LoraError } from "./errors.js";
import { type LoraModule, loraModules, type ModulePlace, modulePath, tensorName } from "./modules.js";
import { compilePattern, PatternBudget } from "./pattern.js";

/** Which modules an adapter adapts, with what rank and scale; the fields are PEFT's, with its defaults and its rules. */
export interface LoraConfig {
  /** PEFT's `r`. */
  readonly rank: number;
  /** PEFT's `lora_alpha`. */
  readonly alpha: number;
  /**
   * Names or paths of modules (`q_proj`, `layers.3.mlp.up_proj`), or a regular expression that their whole path must match
   * (`.*self_attn.*`, Python's syntax), or `all-linear`.
   */
  readonly targetModules: string | readonly string[];
  /** Modules to leave out, in the same form. */
  readonly excludeModules: string | readonly string[];
  /** Layers to adapt; all where it is null. Not beside a regular expression of target modules. */
  readonly layersToTransform: readonly number[] | null;
  /** Other ranks: by a regular expression for the end of a path; the first that matches counts. */
  readonly rankPattern: Readonly<Record<string, number>>;
  /** Other alphas, likewise. */
  readonly alphaPattern: Readonly<Record<string, number>>;
  /** Scale alpha / √rank instead of alpha / rank (Kalajdzievski, 2023). */
  readonly useRsLora: boolean;
  /** Adapts direction and magnitude of the weight's rows apart (DoRA; Liu et al., 2024). */
  readonly useDora: boolean;
  /** `base_model_name_or_path`, for people. */
  readonly baseModel: string | null;
}

/** A module to adapt, and how. */
export interface PlannedTarget extends ModulePlace {
  /** The base's tensor in GGUF: `blk.3.attn_q.weight`. */
  readonly tensor: string;
  readonly inputs: number;
  readonly outputs: number;
  readonly rank: number;
  /** What B·A is multiplied with: alpha / rank (or alpha / √rank), rounded to float32. */
  readonly scale: number;
}

const defaults: LoraConfig = {
  rank: 8,
  alpha: 8,
  targetModules: loraModules,
  excludeModules: [],
  layersToTransform: null,
  rankPattern: {},
  alphaPattern: {},
  useRsLora: false,
  useDora: false,
  baseModel: null,
};

const maxRank = 65_536;

/**
 * A configuration from what differs from the defaults: rank 8, alpha 8, all seven projections of every layer.
 *
 * @throws LoraError `bad-config` naming the field
 */
export function loraConfig(options: Partial<LoraConfig> = {}): LoraConfig {
  const config: LoraConfig = { ...defaults, ...options };
  const ranks = Object.entries(config.rankPattern);
  const alphas = Object.entries(config.alphaPattern);
  for (const [name, rank] of [["rank", config.rank] as const, ...ranks]) {
    if (Number.isInteger(rank) && rank >= 1 && rank <= maxRank) continue;
    throw refuse(`the rank (${name}) must be an integer from 1 to ${maxRank}, got ${rank}`, rank);
  }
  for (const [name, alpha] of [["alpha", config.alpha] as const, ...alphas]) {
    if (!Number.isFinite(Math.fround(alpha)))
      throw refuse(`the alpha (${name}) must be a finite number, got ${alpha}`, alpha);
  }
  const layers = config.layersToTransform;
  if (layers !== null && typeof config.targetModules === "string") {
    throw refuse(
      "layersToTransform is for a list of targetModules; let the regular expression name the layers",
      layers,
    );
  }
  const wrong = layers?.find((layer) => !Number.isInteger(layer) || layer < 0);
  if (wrong !== undefined) throw refuse(`layersToTransform has ${wrong}; layers count from 0`, wrong);
  return config;
}

/**
 * The modules of a base that `config` adapts, in the order of a forward pass, each with its rank and scale.
 *
 * @throws LoraError `bad-config` if there are none, or for a regular expression that cannot be used
 */
export function planTargets(config: LoraConfig, shape: BaseShape): PlannedTarget[] {
  checkShape(shape);
  const budget = new PatternBudget();
  const isTarget = moduleTest(config.targetModules, budget);
  const isExcluded = moduleTest(config.excludeModules, budget);
  const rankOf = patternValue(config.rankPattern, config.rank, budget);
  const alphaOf = patternValue(config.alphaPattern, config.alpha, budget);
  const layers = config.layersToTransform === null ? undefined : new Set(config.layersToTransform);
  const planned: PlannedTarget[] = [];
  for (let layer = 0; layer < shape.layers; layer++) {
    if (layers !== undefined && !layers.has(layer)) continue;
    for (const module of loraModules) {
      const path = modulePath({ layer, module });
      if (!isTarget(path) || isExcluded(path)) continue;
      const [rank, alpha] = [rankOf(path), alphaOf(path)];
      const scale = float32(alpha / (config.useRsLora ? Math.sqrt(rank) : rank));
      planned.push(planTarget({ layer, module }, shape, rank, scale));
    }
  }
  if (planned.length > 0) return planned;
  throw refuse(
    `targetModules ${JSON.stringify(config.targetModules)} names no module of ${shape.layers} layers with ${loraModules.join(", ")}`,
    config.targetModules,
  );
}

function planTarget(place: ModulePlace, shape: BaseShape, rank: number, scale: number): PlannedTarget {
  const [inputs, outputs] = shape.modules[place.module];
  return { ...place, tensor: tensorName(place), inputs, outputs, rank, scale };
}

/**
 * The configuration that stands for given ranks and scales, with alpha / rank scaling: what a file without one, a GGUF,
 * says. {@link planTargets} gives exactly these ranks and scales back.
 */
export function configOf(
  targets: readonly (ModulePlace & { rank: number; scale: number })[],
  shape: BaseShape,
): LoraConfig {
  const ranks = targets.map(({ rank }) => rank);
  // A float32 scale times a rank is exact in float64, and so is the way back.
  const alphas = targets.map(({ rank, scale }) => scale * rank);
  const [rank, alpha] = [mostFrequent(ranks), mostFrequent(alphas)];
  const others = (values: readonly number[], usual: number) =>
    Object.fromEntries(targets.flatMap((target, i) => (values[i] === usual ? [] : [[modulePath(target), values[i]!]])));
  const modules = loraModules.filter((module) => targets.some((target) => target.module === module));
  const isWhole = targets.length === modules.length * shape.layers;
  return loraConfig({
    rank,
    alpha,
    targetModules: isWhole ? modules : targets.map(modulePath),
    rankPattern: others(ranks, rank),
    alphaPattern: others(alphas, alpha),
  });
}

/** The nearest float32, and 0 for −0. */
export function float32(value: number): number {
  return Math.fround(value) + 0;
}

function mostFrequent(values: readonly number[]): number {
  const counts = new Map<number, number>();
  for (const value of values) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].reduce((best, entry) => (entry[1] > best[1] ? entry : best))[0];
}

/** PEFT's `check_target_module_exists`: a text is an expression for the whole path, a list has names or ends of paths. */
function moduleTest(modules: string | readonly string[], budget: PatternBudget): (path: string) => boolean {
  if (typeof modules !== "string") {
    const names = new Set(modules);
    return (path) => names.has(path) || dots(path).some((at) => names.has(path.slice(at + 1)));
  }
  return modules.toLowerCase() === "all-linear" ? () => true : compilePattern(modules, budget);
}

/** PEFT's `get_pattern_key`: the first key for which `(.*\.)?(key)$` matches. */
function patternValue(
  pattern: Readonly<Record<string, number>>,
  usual: number,
  budget: PatternBudget,
): (path: string) => number {
  const entries = Object.entries(pattern).map(([key, value]) => ({ matches: pathEnd(key, budget), value }));
  return (path) => entries.find(({ matches }) => matches(path))?.value ?? usual;
}

function pathEnd(key: string, budget: PatternBudget): (path: string) => boolean {
  if (!/^[\w.]+$/.test(key)) return compilePattern(`(.*\\.)?(${key})`, budget);
  // Most keys are paths: their dots stand for any character, but it is a dot.
  return (path) => {
    budget.spend(1, key);
    const start = path.length - key.length;
    if (start < 0 || (start > 0 && path[start - 1] !== ".")) return false;
    for (let i = 0; i < key.length; i++) if (key[i] !== "." && key[i] !== path[start + i]) return false;
    return true;
  };
}

function dots(path: string): number[] {
  return Array.from(path.matchAll(/\./g), (match) => match.index);
}

function refuse(message: string, value: unknown): LoraError {
  return new LoraError("bad-config", message, { value });
}

/** A module's name as PEFT has it, for arguments from JavaScript. @throws LoraError `invalid-argument` */
export function checkModule(module: string): asserts module is LoraModule {
  if ((loraModules as readonly string[]).includes(module)) return;
  throw new LoraError(
    "invalid-argument",
    `there is no module ${JSON.stringify(module)}; the modules are ${loraModules.join(", ")}`,
    {
      value: module,
    },
  );
}
