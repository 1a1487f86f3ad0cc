import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";

/** The workspace's packages, by folder: `{ folder, manifest }`, with the folder relative to the root. */
export function workspacePackages(root) {
  return ["packages", "examples"]
    .filter((parent) => existsSync(join(root, parent)))
    .flatMap((parent) => readdirSync(join(root, parent)).map((name) => `${parent}/${name}`))
    .filter((folder) => existsSync(join(root, folder, "package.json")))
    .sort()
    .map((folder) => ({ folder, manifest: readManifest(root, folder) }));
}

/** The `package.json` of a folder relative to the root; the root itself is ".". */
export function readManifest(root, folder = ".") {
  return JSON.parse(readFileSync(join(root, folder, "package.json"), "utf8"));
}

/** The version of pnpm that `packageManager` in the root's package.json pins. */
export function pinnedPnpm(root) {
  return readManifest(root).packageManager.replace("pnpm@", "");
}
