import { expect, it } from "vitest";
import { changesetProblems, lockfileProblems } from "./release-rules.mjs";

it("finds registry addresses and archives in a lockfile", () => {
  const lockfile = [
    "packages:",
    "  one@1.0.0:",
    "    resolution: {integrity: sha512-a==}",
    "    deprecated: see https://example.com",
    "  two@1.0.0:",
    "    resolution: {integrity: sha512-b==, tarball: https://registry.example/two.tgz}",
  ];
  expect(lockfileProblems(lockfile.join("\n"))).toEqual([
    "pnpm-lock.yaml:6: resolution: {integrity: sha512-b==, tarball: https://registry.example/two.tgz}",
  ]);
});

const CONFIG = {
  fixed: [],
  linked: [],
  ignore: [],
  access: "public",
  baseBranch: "main",
  ___experimentalUnsafeOptions_WILL_CHANGE_IN_PATCH: { onlyUpdatePeerDependentsWhenOutOfRange: true },
};
const PACKAGES = [
  { name: "@niwaki/gguf", version: "1.2.3" },
  { name: "@niwaki/cli", version: "0.1.0-next.0" },
];

it("accepts packages each on its own version", () => {
  expect(changesetProblems(CONFIG, PACKAGES)).toEqual([]);
});

it("finds that releases of peers would be major ones", () => {
  const { ___experimentalUnsafeOptions_WILL_CHANGE_IN_PATCH: _, ...config } = CONFIG;
  expect(changesetProblems(config, PACKAGES)).toEqual([
    '.changeset/config.json: without "onlyUpdatePeerDependentsWhenOutOfRange" every release of a peer is a major one',
  ]);
});

it("finds packages tied together, a wrong base and a missing version", () => {
  const config = { ...CONFIG, fixed: [["@niwaki/*"]], access: "restricted", baseBranch: "next" };
  expect(changesetProblems(config, [{ name: "@niwaki/gguf" }])).toEqual([
    '.changeset/config.json: "fixed" ties packages\' versions together',
    '.changeset/config.json: "access" is not "public"',
    '.changeset/config.json: "baseBranch" is not "main"',
    '@niwaki/gguf: version "undefined" is no version',
  ]);
});
