// What the calls of every generated TypeScript client have in common.
import { readFileSync } from "node:fs";

const [server = "", picture = "", document = ""] = process.argv.slice(2);

export const SERVER = server;
export const FILE: Buffer = readFileSync(picture);
/** The picture in base64. */
export const IMAGE: string = FILE.toString("base64");
export const QUESTION = "how many cats are there?";
export const TEXTS: string[] = ["two cats", "a dog"];
export const LABELS: string[] = ["a rocket", "two cats"];

/** Tags of the server's own API. `tests/compatibility` calls the other operations with the libraries that they are for. */
const OWN_TAGS = ["inference", "operations"];

/** Whether an operation's answer is right. */
export type Calls = Record<string, () => Promise<boolean>>;

/** Makes every call; each operation of the document must be among them, except those that speak the API of others. */
export async function makeAll(generator: string, calls: Calls): Promise<void> {
  const paths: Record<string, Record<string, { operationId: string; tags: string[] }>> = JSON.parse(readFileSync(document, "utf8")).paths;
  const own = Object.values(paths).flatMap((path) => Object.values(path).filter((it) => OWN_TAGS.includes(it.tags[0]!)));
  const operations = own.map((it) => it.operationId);
  const missing = operations.filter((operation) => !(operation in calls));
  if (missing.length) throw new Error(`${generator}: not called: ${missing}`);
  for (const [operation, call] of Object.entries(calls)) {
    if (!(await call())) throw new Error(`${generator}: ${operation} answered wrongly`);
  }
  console.log(`${generator}: ${Object.keys(calls).length} calls answered rightly, all ${operations.length} operations among them`);
}
