/**
 * The learning rate of a step (from 1): it rises linearly over the warm-up steps, then falls to 0 along half a cosine
 * (Loshchilov and Hutter, 2017), which it would reach one step after the last.
 */
export function cosineRate(step: number, steps: number, warmupSteps: number, peak: number): number {
  if (step <= warmupSteps) return (peak * step) / warmupSteps;
  const progress = (step - warmupSteps - 1) / (steps - warmupSteps);
  return (peak * (1 + Math.cos(Math.PI * progress))) / 2;
}
