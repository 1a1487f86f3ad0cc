import { createHash } from "node:crypto";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";

/**
 * Every file at or under `paths` that `skip` lets through, relative to `root` with forward slashes, in one fixed
 * order. A path that does not exist is no file.
 *
 * @param skip told each base name and its relative path; true leaves the file, or the whole folder, out.
 */
export function listFiles(root, paths, skip = () => false) {
  const files = [];
  const visit = (path, name, entry) => {
    if (skip(name, path)) return;
    if (entry.isFile()) files.push(path);
    if (!entry.isDirectory()) return;
    for (const child of readdirSync(join(root, path), { withFileTypes: true })) {
      visit(`${path}/${child.name}`, child.name, child);
    }
  };
  for (const path of paths) {
    const stat = statSync(join(root, path), { throwIfNoEntry: false });
    if (stat) visit(path, path.slice(path.lastIndexOf("/") + 1), stat);
  }
  return files.sort();
}

/** A fingerprint of the names and contents of `files`: equal for equal trees, whenever they were checked out. */
export function contentFingerprint(root, files) {
  return digest(files, (hash, file) => {
    const content = readFileSync(join(root, file));
    hash.update(`${content.length}\0`).update(content);
  });
}

/** A fingerprint of the names, sizes and times of `files`: cheap, and changed by anything that writes one of them. */
export function statFingerprint(root, files) {
  return digest(files, (hash, file) => {
    const { size, mtimeNs } = statSync(join(root, file), { bigint: true });
    hash.update(`${size} ${mtimeNs}\0`);
  });
}

function digest(files, add) {
  const hash = createHash("sha256");
  for (const file of files) {
    hash.update(`${file}\0`);
    add(hash, file);
  }
  return hash.digest("hex");
}
