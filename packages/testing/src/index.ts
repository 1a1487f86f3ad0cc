export {
  type DemoAnswer,
  demoAdapterAnswers,
  demoAnswers,
  fixturePath,
  goldens,
} from "./fixtures.js";
export { klDivergence } from "./kl-divergence.js";
export { type RandomModelShape, shapes } from "./model-shape.js";
export { randomTokens } from "./random.js";
export { writeRandomModel } from "./random-model.js";
export type { ReferenceAdapter } from "./reference-adapter.js";
export { ReferenceModel } from "./reference-model.js";
