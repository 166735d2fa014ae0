// Uses the pages in Chromium as a person does: by mouse, by keyboard, on a phone, with and without keys.
//
//   node page.mjs http://127.0.0.1:PORT http://127.0.0.1:PORT_WITH_KEYS KEY PICTURES [SCREENSHOTS]
//
// PICTURES is the folder demo/scenes. With SCREENSHOTS, writes those of the documents there.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { chromium } from "playwright-core";

const [server, serverWithKeys, key, pictures, screenshots] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const CAPTION = "two cats on a blue background";
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  // Chromium draws a moving picture as the camera.
  args: ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"],
});

/** Opens a page whose requests, errors and violations of the content security policy fail the check. */
async function open(url, { width = 1440, height = 900, colorScheme = "light", errors = [], before = async () => {} } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, reducedMotion: "reduce", permissions: ["camera", "clipboard-read", "clipboard-write"] });
  const page = await context.newPage();
  const origin = new URL(url).origin;
  page.on("request", (request) => {
    const { protocol, origin: to } = new URL(request.url());
    if (!["blob:", "data:"].includes(protocol)) assert.equal(to, origin, `a request leaves the origin: ${request.url()}`);
  });
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("console", (message) => {
    // Chromium reports each error status; the page shows those itself.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) errors.push(message.text());
  });
  await before(page);
  await page.goto(url);
  page.errors = errors;
  return page;
}

async function playground(url, options) {
  const page = await open(`${url}/`, options);
  await page.waitForSelector("#shown[src]");
  await page.waitForSelector("#limits:has-text('MiB')");
  return page;
}

async function close(page) {
  assert.deepEqual(page.errors, []);
  await page.context().close();
}

async function assertAccessible(page, what) {
  // The content security policy keeps scripts out of the page; the debugger's world is not bound to it.
  const session = await page.context().newCDPSession(page);
  const { frameTree } = await session.send("Page.getFrameTree");
  const { executionContextId } = await session.send("Page.createIsolatedWorld", { frameId: frameTree.frame.id });
  const run = async (expression) => {
    const { result, exceptionDetails } = await session.send("Runtime.evaluate", { contextId: executionContextId, expression, awaitPromise: true, returnByValue: true });
    assert.equal(exceptionDetails, undefined, exceptionDetails?.exception?.description);
    return result.value;
  };
  await run(`${axe}; undefined`);
  const found = await run("axe.run().then(({ violations }) => violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(' | ')}`))");
  assert.deepEqual(found, [], what);
}

async function assertNoSidewaysScrolling(page, what) {
  const [width, inner] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(width <= inner, `${what}: ${width} px wide in a window of ${inner}`);
}

/** The result of a task, once it is complete. */
async function run(page, task) {
  await page.click(`#tab-${task}`);
  await page.click(`#panel-${task} form button.main`);
  await page.waitForSelector(`#panel-${task} .timings`);
  return page.locator(`#panel-${task} .result`);
}

const file = (name) => path.join(pictures, name);
const words = (page) => page.locator("#panel-caption .word");
const heat = (page) => page.evaluate(() => document.querySelector("#heat").toDataURL());

/** A drop or paste of a file, as browsers report it. */
async function give(page, kind, name, type = "image/png") {
  const base64 = readFileSync(file(name)).toString("base64");
  await page.evaluate(
    ([kind, name, base64, type]) => {
      const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
      const data = new DataTransfer();
      data.items.add(new File([bytes], name, { type }));
      const event = kind === "drop" ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }) : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
      document.querySelector("#drop").dispatchEvent(event);
    },
    [kind, name, base64, type],
  );
}

async function screenshot(page, name) {
  if (screenshots) await page.screenshot({ path: path.join(screenshots, `${name}.png`) });
}

const checks = {
  async "a picture is captioned, and each word shows where the model looked"() {
    const page = await playground(server);
    const result = await run(page, "caption");
    assert.equal(await result.locator(".plain").textContent(), CAPTION);
    await page.waitForSelector(".badge.good");
    assert.deepEqual(await words(page).allTextContents(), CAPTION.split(" "));
    assert.match(await words(page).nth(1).getAttribute("title"), /cats: probability 100 %/);
    const empty = await heat(page);
    await words(page).nth(1).hover();
    const cats = await heat(page);
    assert.notEqual(cats, empty);
    assert.match(await page.textContent("#scale"), /0 %.*%.*“cats”/);
    await screenshot(page, "caption");
    await words(page).nth(5).hover();
    assert.notEqual(await heat(page), cats);
    await page.hover("h1");
    assert.equal(await page.isVisible("#scale"), false);
    assert.match(await result.locator(".timings-text").textContent(), /decoding.*waiting.*vision.*text/s);
    await close(page);
  },

  async "every task answers about the picture"() {
    const page = await playground(server);
    const asked = await run(page, "ask");
    assert.match(await asked.textContent(), /what is this\? two cats/);
    assert.match(await asked.textContent(), /what color is the background\? blue/);
    await asked.locator(".word").first().hover();
    assert.equal(await page.isVisible("#scale"), true);
    await page.fill("#panel-ask textarea >> nth=0", "is the background blue?");
    await page.fill("#panel-ask textarea >> nth=1", "no\nyes");
    const closed = await run(page, "ask");
    assert.match(await closed.locator("tbody tr").first().textContent(), /^yes/);
    const matched = await run(page, "match");
    const rows = matched.locator("tbody tr");
    assert.match(await rows.nth(0).textContent(), /two cats on a blue background100 %/);
    assert.match(await rows.nth(2).textContent(), /a red car0 %/);
    const classified = await run(page, "classify");
    assert.match(await classified.locator("tbody tr").first().textContent(), /^two cats/);
    await page.selectOption("#panel-classify select", "match");
    assert.match(await (await run(page, "classify")).locator("tbody tr").first().textContent(), /^two cats/);
    for (const scene of [2, 3, 4, 5]) await page.click(`#scenes li:nth-child(${scene}) button`);
    await page.waitForSelector("#strip li:nth-child(5)");
    const ranked = await run(page, "rank");
    assert.match(await ranked.locator("tbody tr").first().textContent(), /^Two cats/);
    const map = await run(page, "embed");
    assert.equal(await map.locator("svg image").count(), 5);
    assert.equal(await map.locator("svg circle").count(), 4);
    assert.match(await map.locator("tbody tr").first().textContent(), /^Two catstwo cats/);
    await screenshot(page, "embed");
    await close(page);
  },

  async "beams and samples are listed, and parameters reach the server"() {
    const page = await playground(server);
    await page.selectOption("#panel-caption select", "beams");
    const beams = await run(page, "caption");
    assert.equal(await beams.locator("tbody tr").count(), 3);
    assert.match(await beams.locator("tbody tr").first().textContent(), new RegExp(CAPTION));
    await page.selectOption("#panel-caption select", "greedy");
    await page.click("#panel-caption > form summary");
    await page.fill("#panel-caption input[name=max_new_tokens]", "2");
    assert.equal(await (await run(page, "caption")).locator(".plain").textContent(), "two cats");
    await page.fill("#panel-caption input[name=max_new_tokens]", "");
    await page.fill("#panel-caption textarea", '{"suppress_tokens": []');
    await page.click("#panel-caption form button.main");
    await page.waitForSelector("#panel-caption .error:has-text('JSON object')");
    await close(page);
  },

  async "pictures are dropped, pasted, chosen, taken, shown and removed"() {
    const page = await playground(server);
    await give(page, "drop", "pizza.png");
    await page.waitForSelector("#panel-caption .plain:has-text('pizza')");
    await give(page, "paste", "three-bees.png");
    await page.waitForSelector("#panel-caption .plain:has-text('three bees')");
    await page.setInputFiles("#file", [file("whale.png"), file("rocket.png")]);
    await page.waitForSelector("#panel-caption .plain:has-text('rocket')");
    assert.equal(await page.locator("#strip li").count(), 5);
    await page.click("#strip li:nth-child(2) button.thumb");
    assert.match(await page.getAttribute("#shown", "alt"), /pizza/);
    await page.click("#strip li:nth-child(2) button.remove");
    assert.equal(await page.locator("#strip li").count(), 4);
    await give(page, "drop", "scenes.json", "application/json");
    await page.waitForSelector("#complaint:has-text('is not a picture')");
    await page.click("#camera");
    await page.click("#camera-off");
    assert.equal(await page.isVisible("#video"), false);
    await page.click("#camera");
    await page.click("#shoot");
    await page.waitForSelector("#strip li:nth-child(5)");
    assert.match(await page.getAttribute("#shown", "alt"), /camera/);
    await close(page);
  },

  async "a result belongs to its picture"() {
    // Narrow, where the words are below the picture and must not move when the scale appears.
    const page = await playground(server, { width: 700 });
    await run(page, "caption");
    await page.focus("#scenes li:nth-child(4) button");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#panel-caption .plain:has-text('rocket')");
    await page.click("#tab-ask");
    await page.click("#strip li:nth-child(1) button.thumb");
    // The button that was pressed keeps the focus.
    assert.equal(await page.evaluate(() => document.activeElement.getAttribute("aria-label")), "Show Two cats");
    await run(page, "ask");
    await page.click("#strip li:nth-child(2) button.thumb");
    const word = page.locator("#panel-ask .word").first();
    await word.scrollIntoViewIfNeeded();
    const before = await word.boundingBox();
    await word.hover();
    assert.match(await page.getAttribute("#shown", "alt"), /Two cats/);
    assert.deepEqual(await word.boundingBox(), before);
    await page.waitForSelector("#scale:not(.unseen)");
    await page.click("#strip li:nth-child(1) button.remove");
    await word.hover();
    assert.equal(await page.isVisible("#scale"), false);
    await close(page);
  },

  async "a server that has forgotten the pictures gets them again"() {
    let forgotten = 0;
    const page = await playground(server, {
      before: (page) =>
        page.route("**/rank", async (route) => {
          forgotten += 1;
          if (forgotten > 1) return route.continue();
          await route.fulfill({ status: 404, contentType: "application/problem+json", body: JSON.stringify({ code: "image_not_found", detail: "gone", status: 404 }) });
        }),
    });
    await page.click("#scenes li:nth-child(2) button");
    await page.waitForSelector("#strip li:nth-child(2)");
    const ranked = await run(page, "rank");
    assert.match(await ranked.locator("tbody tr").first().textContent(), /^Two cats/);
    assert.equal(forgotten, 2);
    await close(page);
  },

  async "everything works by keyboard"() {
    const page = await playground(server);
    await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.id), "tab-caption");
    for (const tab of ["ask", "match", "classify", "rank", "embed", "caption"]) {
      await page.keyboard.press("ArrowRight");
      assert.equal(await page.evaluate(() => document.activeElement.id), `tab-${tab}`);
      assert.equal(await page.isVisible(`#panel-${tab}`), true);
    }
    await page.keyboard.press("End");
    assert.equal(await page.isVisible("#panel-embed"), true);
    await page.keyboard.press("Home");
    // The text field, the choice of the method, "More", and the button.
    for (let press = 0; press < 4; press += 1) await page.keyboard.press("Tab");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#panel-caption .timings");
    await page.keyboard.press("Tab");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "two");
    const first = await heat(page);
    await page.keyboard.press("Tab");
    assert.notEqual(await heat(page), first);
    await page.keyboard.press("Enter");
    assert.equal(await words(page).nth(1).getAttribute("aria-pressed"), "true");
    await page.focus("#scenes li:nth-child(4) button");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#panel-caption .plain:has-text('rocket')");
    await close(page);
  },

  async "a result has its JSON and the same call as code"() {
    const page = await playground(server);
    const result = await run(page, "match");
    await result.locator("summary", { hasText: "JSON" }).click();
    assert.match(await result.locator("pre").first().textContent(), /"scores"/);
    await result.locator("summary", { hasText: "code" }).click();
    // Without --form-string, curl would read files that a text names.
    assert.match(await result.locator("pre").last().textContent(), /--form-string 'texts=two cats/);
    const code = result.locator("pre").last();
    assert.match(await code.textContent(), new RegExp(`^curl .*${server}/similarity.*-F image=@photo.jpg`, "s"));
    for (const [language, text] of [["Python", "requests.post"], ["JavaScript", "await fetch"]]) {
      await result.locator("select").selectOption(language);
      assert.ok((await code.textContent()).includes(text));
    }
    await result.locator("button", { hasText: "Copy" }).click();
    await page.waitForSelector("button:has-text('Copied')");
    assert.match(await page.evaluate(() => navigator.clipboard.readText()), /await fetch/);
    await close(page);
  },

  async "a key is asked for, used, and kept for the tab"() {
    const page = await open(`${serverWithKeys}/`);
    await page.waitForSelector("#state:has-text('needs an API key')");
    await page.click("#panel-caption form button.main");
    await page.waitForSelector("#panel-caption .error");
    await page.waitForSelector("#key:focus");
    await page.keyboard.type("wrong-key-wrong-key");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#state:has-text('key')");
    await page.fill("#key", key);
    await page.keyboard.press("Enter");
    await page.waitForSelector("#limits:has-text('MiB')");
    assert.equal(await (await run(page, "caption")).locator(".plain").textContent(), CAPTION);
    await page.reload();
    await page.waitForSelector("#limits:has-text('MiB')");
    await run(page, "caption");
    assert.equal(await page.evaluate(() => localStorage.length), 0);
    await close(page);
  },

  async "a busy server is asked again when it says, and errors are sentences"() {
    let refusals = 0;
    const page = await playground(server, {
      before: (page) =>
        page.route("**/similarity", async (route) => {
          refusals += 1;
          if (refusals > 1) return route.continue();
          const body = JSON.stringify({ code: "overloaded", detail: "the queue is full", status: 503 });
          await route.fulfill({ status: 503, headers: { "retry-after": "2" }, contentType: "application/problem+json", body });
        }),
    });
    await page.click("#tab-match");
    await page.click("#panel-match form button.main");
    await page.waitForSelector("text=Trying again in 2 s");
    await page.waitForSelector("text=Trying again in 1 s");
    await page.waitForSelector("#panel-match .timings");
    assert.equal(refusals, 2);
    await page.fill("#panel-match textarea", "");
    await page.click("#panel-match form button.main");
    assert.match(await page.textContent("#panel-match .error"), /texts/i);
    await close(page);
  },

  async "the page tells what the server is doing"() {
    let status = "loading";
    const page = await open(`${server}/`, {
      before: (page) =>
        page.route("**/health", (route) => (status === "" ? route.continue() : route.fulfill({ status: 503, contentType: "application/json", body: JSON.stringify({ status }) }))),
    });
    await page.waitForSelector("#state:has-text('loading its models')");
    status = "draining";
    await page.waitForSelector("#state:has-text('shutting down')");
    status = "";
    await page.waitForSelector("#state:has-text('demo models')");
    await page.click("#models summary");
    assert.equal(await page.locator("#model-list li").count(), 3);
    await close(page);
  },

  async "what a model says never becomes markup"() {
    const evil = '<img src=x onerror="document.title=\'owned\'"><b>bold</b>';
    const token = { id: 1, text: evil, logprob: -0.1, weights: Array(64).fill(1 / 64) };
    const done = { model: "m", captions: [{ text: evil, explanation: { grid: [8, 8], layers: [0], tokens: [token] } }], image: { id: "sha256:0" }, timing: {} };
    const events = `event: delta\ndata: ${JSON.stringify({ text: evil, tokens: [] })}\n\nevent: done\ndata: ${JSON.stringify(done)}\n\n`;
    const page = await playground(server, {
      before: (page) => page.route("**/caption", (route) => route.fulfill({ status: 200, contentType: "text/event-stream", body: events })),
    });
    const result = await run(page, "caption");
    assert.equal(await result.locator(".plain").textContent(), evil);
    assert.equal(await result.locator("img, b").count(), 0);
    assert.equal(await page.title(), "BLIP playground");
    await close(page);
  },

  async "a caption that does not match says so"() {
    const page = await playground(server, {
      before: (page) => page.route("**/similarity", (route) => route.fulfill({ status: 200, contentType: "application/json", body: JSON.stringify({ scores: [[{ match: 0.01 }]] }) })),
    });
    await run(page, "caption");
    await page.waitForSelector(".badge.bad");
    assert.match(await page.textContent("#panel-caption .warn:not([hidden])"), /probably does not describe.*demo models/);
    await close(page);
  },

  async "small and large, light and dark, the page is accessible"() {
    for (const width of [360, 1440]) {
      for (const colorScheme of ["light", "dark"]) {
        const what = `${width} px, ${colorScheme}`;
        const page = await playground(server, { width, height: 800, colorScheme });
        await page.click("#models summary");
        await page.click("#key-open");
        for (const scene of [2, 3]) await page.click(`#scenes li:nth-child(${scene}) button`);
        for (const task of ["caption", "ask", "match", "classify", "rank", "embed"]) {
          const result = await run(page, task);
          for (const summary of await result.locator("summary").all()) await summary.click();
          await assertAccessible(page, `${task}, ${what}`);
          await assertNoSidewaysScrolling(page, `${task}, ${what}`);
        }
        if (width === 360) {
          await page.click("#tab-caption");
          await words(page).nth(1).hover();
          // The picture is in view together with the word.
          const box = await page.locator("#stage").boundingBox();
          assert.ok(box && box.y >= 0 && box.y + box.height <= 800, what);
          await screenshot(page, `phone-${colorScheme}`);
        }
        await close(page);
      }
    }
  },

  async "the status page draws the metrics"() {
    for (const [url, needsKey] of [[server, false], [serverWithKeys, true]]) {
      const page = await open(`${url}/status`, { colorScheme: needsKey ? "dark" : "light" });
      if (needsKey) {
        await page.waitForSelector("#state:has-text('needs an API key')");
        await page.click("#key-open");
        await page.keyboard.type(key);
        await page.keyboard.press("Enter");
      }
      await page.waitForFunction(() => /MiB/.test(document.querySelector("[aria-label=Memory] p").textContent));
      await page.waitForFunction(() => document.querySelector("[aria-label=Memory] path").getAttribute("d").includes("L"));
      await assertAccessible(page, "status");
      await assertNoSidewaysScrolling(page, "status");
      if (!needsKey) await screenshot(page, "status");
      await close(page);
    }
  },

  async "the first word comes soon after a drop"() {
    const page = await playground(server);
    await run(page, "caption");
    const times = [];
    for (const name of ["pizza.png", "three-frogs.png", "tree-and-house.png", "two-robots.png", "apple-and-banana.png"]) {
      await page.evaluate(() => {
        globalThis.firstWord = new Promise((resolve) => {
          const observer = new MutationObserver(() => {
            const shown = document.querySelector("#panel-caption .result .caption:not(.plain)");
            if (shown?.textContent && !document.querySelector("#panel-caption .plain")) {
              observer.disconnect();
              resolve(performance.now());
            }
          });
          observer.observe(document.querySelector("#panel-caption"), { childList: true, subtree: true, characterData: true });
        });
        document.addEventListener("drop", () => (globalThis.dropped = performance.now()), { once: true, capture: true });
      });
      await give(page, "drop", name);
      times.push(await page.evaluate(async () => (await globalThis.firstWord) - globalThis.dropped));
      await page.waitForSelector("#panel-caption .timings");
    }
    times.sort((a, b) => a - b);
    console.log(`from drop to first word: median ${times[2].toFixed(0)} ms, ${times.map((time) => time.toFixed(0)).join(", ")} (demo models)`);
    await close(page);
  },
};

const only = process.env.ONLY;
let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  if (only && !name.includes(only)) continue;
  const start = performance.now();
  try {
    await check();
    console.log(`ok ${name} (${((performance.now() - start) / 1000).toFixed(1)} s)`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${name}: ${error.stack}`);
  }
}
await browser.close();
process.exit(failed ? 1 : 0);
