import { type LoadOptions, Qwen3Model } from "@niwaki/qwen3-model";
import { Presets, SingleBar } from "cli-progress";

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

function megabytes(bytes: number): number {
  return Math.round(bytes / 1e6);
}
