import { type AdapterChoice, type LoadOptions, Qwen3Model } from "@niwaki/qwen3-model";
import { Presets, SingleBar } from "cli-progress";
import type { LoraFlag } from "./flags.js";

/** Loads a model with a progress bar on a terminal's standard error; what takes no time shows none. */
export async function load(path: string, options: LoadOptions): Promise<{ model: Qwen3Model; seconds: number }> {
  const begun = performance.now();
  let bar: SingleBar | undefined;
  const onProgress = (loaded: number, total: number) => {
    if (!process.stderr.isTTY || (bar === undefined && performance.now() - begun < 300)) return;
    if (bar === undefined) {
      bar = new SingleBar(
        { format: "loading [{bar}] {percentage}%  {value}/{total} MB", stream: process.stderr, clearOnComplete: true },
        Presets.legacy,
      );
      bar.start(megabytes(total), 0);
    }
    bar.update(megabytes(loaded));
  };
  try {
    const model = await Qwen3Model.load(path, { ...options, onProgress });
    return { model, seconds: (performance.now() - begun) / 1000 };
  } finally {
    bar?.stop();
  }
}

/** Loads the adapters of `--lora` and says how to name them, all as one mix, in the options of an answer. */
export async function loadAdapters(
  model: Qwen3Model,
  flags: readonly LoraFlag[] = [],
): Promise<{ adapter?: AdapterChoice }> {
  const mix = flags.map(({ scale }, i) => ({ name: `--lora ${i + 1}`, scale }));
  for (const [i, { path }] of flags.entries()) await model.adapters.load(path, { name: mix[i]!.name });
  return mix.length === 0 ? {} : { adapter: mix };
}

function megabytes(bytes: number): number {
  return Math.round(bytes / 1e6);
}
