const SCRIPTS_RUN_ON_INSTALL = ["preinstall", "install", "postinstall", "prepare"];

/**
 * What a public package's package.json lacks of the rules that all of ours follow, one line each.
 *
 * @param exists tells whether a file, relative to the package, is there.
 */
export function manifestProblems(manifest, exists) {
  const problems = [];
  const want = (holds, line) => {
    if (!holds) problems.push(line);
  };
  want(manifest.license === "Apache-2.0", 'license is not "Apache-2.0"');
  want(manifest.type === "module", 'type is not "module"');
  want(manifest.engines?.node === "^20.19.0 || >=22.12.0", "engines.node is not ^20.19.0 || >=22.12.0");
  want(manifest.publishConfig?.access === "public", "publishConfig.access is not public");
  want("sideEffects" in manifest, "sideEffects is not set");
  want(manifest.description, "description is missing");
  for (const file of ["README.md", "LICENSE"]) {
    want(exists(file), `${file} is missing`);
    want(manifest.files?.includes(file), `files does not list ${file}`);
  }
  for (const [path, target] of Object.entries(manifest.exports ?? {})) {
    if (path.endsWith(".json")) continue;
    want(target.types && target.default, `exports["${path}"] has no types and default`);
    want(!target.require && !target.import, `exports["${path}"] tells require from import: a package is ESM only`);
  }
  want(manifest.exports?.["."], 'exports has no "."');
  for (const script of SCRIPTS_RUN_ON_INSTALL) {
    want(!manifest.scripts?.[script], `scripts.${script} would run on the machine of whoever installs the package`);
  }
  for (const [name, range] of Object.entries(manifest.dependencies ?? {})) {
    want(/^(workspace|catalog):/.test(range), `dependency ${name} is neither from the workspace nor from the catalog`);
  }
  return problems;
}
