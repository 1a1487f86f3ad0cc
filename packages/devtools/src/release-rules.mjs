/** Lines of a pnpm lockfile that name a registry or an archive: it should install from whichever registry is set. */
export function lockfileProblems(lockfile) {
  return lockfile
    .split("\n")
    .map((line, index) => ({ line: line.trim(), number: index + 1 }))
    .filter(({ line }) => /https?:\/\/|\btarball:/.test(line) && !/^deprecated:/.test(line))
    .map(({ line, number }) => `pnpm-lock.yaml:${number}: ${line}`);
}

const UNSAFE = "___experimentalUnsafeOptions_WILL_CHANGE_IN_PATCH";

/** What in the settings of changesets or in the manifests keeps a package from having a version of its own. */
export function changesetProblems(config, manifests) {
  const problems = [];
  for (const key of ["fixed", "linked", "ignore"]) {
    if (config[key]?.length > 0) problems.push(`.changeset/config.json: "${key}" ties packages' versions together`);
  }
  if (config.access !== "public") problems.push('.changeset/config.json: "access" is not "public"');
  if (config.baseBranch !== "main") problems.push('.changeset/config.json: "baseBranch" is not "main"');
  if (!config[UNSAFE]?.onlyUpdatePeerDependentsWhenOutOfRange) {
    problems.push(
      '.changeset/config.json: without "onlyUpdatePeerDependentsWhenOutOfRange" every release of a peer is a major one',
    );
  }
  for (const { name, version } of manifests) {
    if (!/^\d+\.\d+\.\d+(-[\w.]+)?$/.test(version ?? "")) problems.push(`${name}: version "${version}" is no version`);
  }
  return problems;
}
