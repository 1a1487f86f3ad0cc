import { goldens, klDivergence } from "@niwaki/testing";
import { it } from "vitest";
import { allLogits } from "./test-helpers.js";
it("x", async () => {
  for (const g of goldens()) {
    const row = [];
    for (const kvType of ["f32", "f16", "q8"] as const)
      row.push(klDivergence(g.logits, await allLogits(g.model, g.tokens, { kvType }), g.shape[1]).mean.toExponential(2));
    console.log(g.name, g.llamaCppMeanKl?.toExponential(2), ...row);
  }
});
