// Validates custom resources against types that are generated from the Go sources of their projects (kubernetes-models).
// The validators check values, but accept unknown fields; TypeScript rejects unknown fields in object literals. So each
// object goes through both. Input: a JSON list of { set, object } on standard input. Exit code 1 if an object is invalid.
//
//   npm install && node custom_resources.mjs < objects.json

import { spawnSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";

const PACKAGES = {
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
  "keda.sh": "@kubernetes-models/keda",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};

const objects = JSON.parse(readFileSync(0, "utf8"));
const failures = [];
const lines = [];
for (const { set, object } of objects) {
  const [group, version] = object.apiVersion.split("/");
  const module = `${PACKAGES[group]}/${group}/${version}/${object.kind}`;
  const { [object.kind]: Model } = await import(module);
  try {
    new Model(object).validate();
  } catch (error) {
    failures.push(`${set}: ${object.kind}: ${error.message}`);
  }
  // One object a line, so that the line number of an error names the object.
  const type = `import("${module}").I${object.kind}`;
  lines.push(`export const object${lines.length}: ${type} = ${JSON.stringify(object)};`);
}

writeFileSync("objects.ts", lines.join("\n") + "\n");
const tsc = ["node_modules/typescript/bin/tsc", "--noEmit", "--strict", "--pretty", "false"];
const modules = ["--module", "nodenext", "--moduleResolution", "nodenext", "objects.ts"];
const { status, stdout } = spawnSync(process.execPath, [...tsc, ...modules], { encoding: "utf8" });
for (const message of stdout.split("\n").filter((text) => text.includes("error TS"))) {
  const { set, object } = objects[Number(message.match(/\((\d+),/)[1]) - 1];
  failures.push(`${set}: ${object.kind}: ${message}`);
}
if (status !== 0 && failures.length === 0) failures.push(stdout);

for (const failure of failures) console.log(failure);
process.exit(failures.length === 0 ? 0 : 1);
