// Uploads a picture by "Try it out" in every operation of /docs that runs a model and takes forms, with what Swagger UI fills in by itself. `clients.sh` runs
// it; by hand, with playwright-core installed and Chromium at /usr/bin/chromium or where CHROMIUM says:
//
//   node tests/openapi/swagger.mjs http://127.0.0.1:8080 PICTURE.jpg
//
// Exit status: 0 when all twelve answer 200.
import { chromium } from "playwright-core";

const [server, picture] = process.argv.slice(2);
// Fields without which a call asks nothing, by a part of its path.
const NEEDED = { vqa: ["question", "how many cats are there?"], similarity: ["text", "two cats"], classify: ["labels", "two cats"], rank: ["texts", "two cats"] };

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"],
});
const page = await browser.newPage();
await page.goto(`${server}/docs/`);
await page.waitForSelector(".opblock-post");
let good = 0;
for (const operation of await page.$$('[id^="operations-inference-"].opblock-post')) {
  const path = (await operation.$eval(".opblock-summary-path", (it) => it.innerText)).replace(/\u200b/g, "");
  await (await operation.$(".opblock-summary-control")).click();
  await operation.waitForSelector(".try-out__btn");
  await (await operation.$(".try-out__btn")).click();
  await (await operation.$(".body-param-content-type select, .content-type")).selectOption("multipart/form-data");
  // The form is drawn anew.
  await operation.waitForSelector("tr.parameters");
  for (const row of await operation.$$("tr.parameters")) {
    const name = (await row.innerText()).trim().split(/[\s*]/)[0];
    if (name === "image" && !(await row.$("input[type=file]"))) {
      await (await row.$("button.json-schema-form-item-add")).click();
    }
    const needed = Object.entries(NEEDED).find(([part, [field]]) => path.includes(part) && field === name);
    if (!needed) continue;
    // A list begins without items.
    if (!(await row.$("input[type=text], textarea"))) await (await row.$("button.json-schema-form-item-add")).click();
    await (await row.waitForSelector("input[type=text], textarea")).fill(needed[1][1]);
  }
  await (await operation.waitForSelector("input[type=file]")).setInputFiles(picture);
  await (await operation.$(".execute")).click();
  const status = await operation.waitForSelector(".live-responses-table tbody .response-col_status");
  const code = (await status.innerText()).trim().split("\n")[0];
  const body = await operation.$eval(".live-responses-table tbody .response-col_description", (it) => it.innerText);
  console.log(path, code, body.replace(/\s+/g, " ").slice(0, 120));
  good += code === "200";
  await (await operation.$(".opblock-summary-control")).click();
}
await browser.close();
process.exit(good === 12 ? 0 : 1);
