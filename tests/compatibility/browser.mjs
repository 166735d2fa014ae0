// Opens a page in Chromium, chooses a picture in its file input, and prints the text of its `output` element. `snippets.py`
// runs the page of docs/clients.md with it; by hand, with playwright-core installed and Chromium at /usr/bin/chromium or
// where CHROMIUM says:
//
//   node browser.mjs PAGE.html PICTURE http://localhost:3000
//
// The page is served at the given origin, which the server must allow.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { chromium } from "playwright-core";

const [file, picture, origin] = process.argv.slice(2);
const html = await readFile(file);
const pages = createServer((_, answer) => answer.setHeader("content-type", "text/html").end(html));
await new Promise((ready) => pages.listen(new URL(origin).port, "localhost", ready));
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"],
});
const page = await browser.newPage();
page.on("console", (message) => console.error(message.text()));
await page.goto(origin);
await page.setInputFiles("input[type=file]", picture);
await page.waitForFunction(() => document.querySelector("output").textContent);
console.log(await page.textContent("output"));
await browser.close();
pages.close();
