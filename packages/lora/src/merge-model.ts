import { dequantize, type GgufFile, type GgufTensor, quantize, type TensorType, writeGguf } from "@niwaki/gguf";
import { LoraError } from "./errors.js";
import type { LoraAdapter } from "./lora-adapter.js";
import { type LoraTarget, typeBytes } from "./lora-target.js";
import { mergeTarget, quantizedWeights } from "./merge.js";
import { relative } from "./requantize.js";

/** An adapter to merge. */
export interface MergedAdapter {
  readonly adapter: LoraAdapter;
  /** What its change is multiplied with; 1 unless given. */
  readonly scale?: number;
}

/** What became of the changed tensors of one type. */
export interface MergedTensors {
  readonly from: TensorType;
  readonly to: TensorType;
  readonly tensors: number;
  /** Root mean square of the change that the adapters make to the weights. */
  readonly change: number;
  /** Root mean square of what the written weights differ from the merged ones. */
  readonly error: number;
  /** error / change: from 1 on, the type takes away as much as the adapters brought. */
  readonly relativeError: number;
}

/** Weights that are merged at a time. */
const PIECE = 2 ** 18;

/**
 * Writes a copy of a model with adapters merged into it: the metadata and every tensor that no adapter changes byte for byte,
 * the others as `type`, or as the floats they are. Of several adapters each adds `scale` times what it would change alone. In
 * memory is one tensor of the model at a time.
 *
 * @param path of the new file, which may be the model's own; it is there when it is complete
 * @returns what was lost, a line for each pair of types
 * @throws LoraError `quantized-weights` for quantized tensors without `type`, `wrong-base` for adapters of another model,
 *   `unsupported` for tensors that cannot be copied; GgufError where `type` cannot hold the sum, `unreadable`, `unwritable`
 */
export async function mergeIntoModel(
  model: GgufFile,
  adapters: readonly MergedAdapter[],
  path: string,
  { type }: { readonly type?: TensorType } = {},
): Promise<MergedTensors[]> {
  const changes = changesOf(model, adapters);
  const losses = new Map<string, Loss>();
  const tensors = [...model.tensors.values()].map((tensor) => {
    const { name, dims } = tensor;
    const from = typeOf(tensor, model);
    const mix = changes.get(name);
    if (mix === undefined) return { name, dims, type: from, data: copied(model, name) };
    const to = type ?? from;
    if (type === undefined && !Object.hasOwn(typeBytes, from)) {
      throw quantizedWeights(name, `name a type to write, as F16 for these of ${from}; what is lost is reported`);
    }
    const loss = losses.get(from) ?? new Loss(from, to);
    losses.set(from, loss);
    loss.tensors++;
    return { name, dims, type: to, data: merged(model, tensor, mix, loss) };
  });
  await writeGguf(path, { metadata: model, tensors });
  return [...losses.values()].map((loss) => loss.report());
}

interface Change {
  readonly target: LoraTarget;
  readonly scale: number;
}

/** By tensor, in the order of the adapters. */
function changesOf(model: GgufFile, adapters: readonly MergedAdapter[]): Map<string, Change[]> {
  const changes = new Map<string, Change[]>();
  for (const { adapter, scale = 1 } of adapters) {
    if (!Number.isFinite(scale)) {
      throw new LoraError("invalid-argument", `an adapter's scale must be a finite number, got ${scale}`, {
        value: scale,
      });
    }
    for (const target of adapter) {
      const { tensor, inputs, outputs } = target;
      const dims = model.tensors.get(tensor)?.dims ?? [];
      if (dims.join() !== `${inputs},${outputs}`) {
        throw new LoraError(
          "wrong-base",
          `${tensor} is [${dims.join(", ")}], but the adapter is for one that is [${inputs}, ${outputs}]`,
          { path: model.path, tensor, value: dims },
        );
      }
      changes.set(tensor, [...(changes.get(tensor) ?? []), { target, scale }]);
    }
  }
  return changes;
}

function typeOf({ name, type, typeName }: GgufTensor, { path }: GgufFile): TensorType {
  if (type !== null) return type;
  throw new LoraError("unsupported", `${name} is of type ${typeName}, which cannot be written`, { path, tensor: name });
}

async function* copied(model: GgufFile, name: string): AsyncGenerator<Uint8Array> {
  yield await model.readTensor(name);
}

/** The merged tensor, some rows at a time. */
async function* merged(
  model: GgufFile,
  { name, dims }: GgufTensor,
  mix: readonly Change[],
  loss: Loss,
): AsyncGenerator<Uint8Array> {
  const [inputs, outputs] = dims as [number, number];
  const bytes = await model.readTensor(name);
  const rowBytes = bytes.byteLength / outputs;
  const most = Math.max(1, Math.floor(PIECE / inputs));
  for (let first = 0; first < outputs; first += most) {
    const rows = Math.min(most, outputs - first);
    const base = dequantize(loss.from, bytes.subarray(first * rowBytes, (first + rows) * rowBytes), rows * inputs);
    const sum = merge(base, mix, first);
    const data = quantize(loss.to, sum);
    loss.add(base, sum, dequantize(loss.to, data, sum.length));
    yield data;
  }
}

/** Summed in float64, rounded once. */
function merge(base: Float32Array, mix: readonly Change[], first: number): Float32Array {
  const sum = Float64Array.from(base);
  for (const { target, scale } of mix) {
    const alone = Float64Array.from(base);
    mergeTarget(alone, target, first);
    for (let i = 0; i < sum.length; i++) sum[i]! += scale * (alone[i]! - base[i]!);
  }
  return Float32Array.from(sum);
}

/** Sums over all tensors of a type. */
class Loss {
  tensors = 0;
  #weights = 0;
  #change = 0;
  #error = 0;

  constructor(
    readonly from: TensorType,
    readonly to: TensorType,
  ) {}

  add(base: Float32Array, sum: Float32Array, written: Float32Array): void {
    this.#weights += base.length;
    for (let i = 0; i < base.length; i++) {
      this.#change += (sum[i]! - base[i]!) ** 2;
      this.#error += (written[i]! - sum[i]!) ** 2;
    }
  }

  report(): MergedTensors {
    const { from, to, tensors } = this;
    const change = Math.sqrt(this.#change / this.#weights);
    const error = Math.sqrt(this.#error / this.#weights);
    return { from, to, tensors, change, error, relativeError: relative(error, change) };
  }
}
