// What check.sh runs: the live page in headless Chromium, beside the doors and /metrics of the service that it shows.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";

const { DOORS, METRICS, SHOTS, SERVICE, PLAYWRIGHT } = process.env;
const { chromium } = await import(PLAYWRIGHT);

async function call(method, path, body) {
  const answer = await fetch(DOORS + path, { method, headers: { "content-type": "application/json" }, body: body && JSON.stringify(body) });
  assert.ok(answer.ok, `${method} ${path}: ${answer.status} ${await answer.clone().text()}`);
  return answer.json();
}
const view = () => call("GET", "/v1/models/distance");

async function until(what, holds, seconds = 20) {
  for (const end = Date.now() + 1000 * seconds; Date.now() < end; await sleep(100)) {
    const found = await holds();
    if (found) return found;
  }
  assert.fail(`in ${seconds} s it did not come to: ${what}`);
}

async function sample(name, labels = "") {
  const text = await (await fetch(METRICS)).text();
  const line = text.split("\n").find((line) => line.startsWith(`mustela_${name}{model="distance"${labels}`));
  assert.ok(line, `no ${name}`);
  return Number(line.slice(line.lastIndexOf(" ")));
}

/** Rows of two classes that a small network can tell apart, most of the time. */
const rows = (first, count) => Array.from({ length: count }, (_, row) => {
  const far = (first + row) % 2;
  const wobble = (((first + row) * 7919) % 1000) / 250;
  return { x: far * 3 + wobble, y: far * 2 + 4 - wobble, label: far ? "far" : "near" };
});

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const complaints = [];
const elsewhere = [];
let expected = null;

async function open(options, path = "/") {
  const context = await browser.newContext({ deviceScaleFactor: 1, ...options });
  await context.route(() => true, (route) => {
    if (new URL(route.request().url()).origin === DOORS) return route.continue();
    elsewhere.push(route.request().url());
    return route.abort();
  });
  const page = await context.newPage();
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type()) && !expected?.test(message.text())) complaints.push(message.text());
  });
  page.on("pageerror", (error) => complaints.push(String(error)));
  await page.addInitScript(() => document.addEventListener("securitypolicyviolation", (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`)));
  await page.goto(DOORS + path);
  return page;
}
const text = (page, selector) => page.locator(selector).innerText();
const desktop = { viewport: { width: 1440, height: 900 } };
const phone = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true };

// Nothing is there yet: the page says what to do, and shows the model when somebody has done it.
const page = await open({ ...desktop, colorScheme: "light" });
await page.locator("#empty").waitFor();
assert.match(await text(page, "#empty-code"), /curl -X PUT .*\/v1\/streams\/points/);
await page.screenshot({ path: `${SHOTS}/empty.png` });
await call("PUT", "/v1/streams/points", {
  fields: [{ name: "x", type: "numeric" }, { name: "y", type: "numeric" }],
  target: { name: "label", type: "classes", classes: ["near", "far"] },
});
await until("a stream without a model", async () => (await text(page, "#empty-text")).includes("no model learns"));
await call("PUT", "/v1/models/distance", {
  kind: "network", stream: "points", network: { architecture: "mlp", hidden: [64, 64] }, learning_rate: 0.05, step_rows: 16,
});
await page.locator("#live").waitFor();

for (let batch = 0; batch < 30; batch += 1) {
  await call("POST", "/v1/streams/points/batches", { rows: rows(batch * 100, 100) });
  await sleep(100);
}
await until("all rows are learned", async () => (await view()).rows.waiting === 0);

// The same figures here, at the door, and in /metrics.
const plain = (value) => Number(value.replace(/[, %]/g, ""));
await until("the page shows the newest version", async () => (await text(page, '[data-figure="version"]')) === "0.3000");
await sleep(1500);
const now = await view();
assert.equal(await text(page, '[data-figure="steps"]'), String(now.steps));
assert.equal(now.steps, await sample("model_steps_total"));
assert.equal(await text(page, '[data-figure="tile-accuracy"]'), `${(now.sliding.accuracy * 100).toFixed(1)} %`);
assert.ok(Math.abs(now.sliding.accuracy - (await sample("model_online_accuracy_ratio", ',window="sliding"'))) < 1e-9);
assert.ok(Math.abs(plain(await text(page, '[data-figure="tile-loss"]')) - now.sliding.loss) < 0.0051);
assert.equal(plain(await text(page, '[data-figure="tile-lag"]')), now.lag_rows);
assert.equal(now.lag_rows, await sample("model_lag_rows"));
assert.match(await text(page, "#tile-lag .beside"), new RegExp(`${now.rows.learned.toLocaleString("en")} learned of ${now.rows.accepted.toLocaleString("en")}`));
assert.equal(now.memory.planned_bytes, await sample("planned_bytes"));

// The slider, by keyboard alone.
const slider = page.locator("#budget");
await until("the frontier is drawn", async () => (await page.locator("#frontier .point").count()) > 0);
await slider.focus();
await page.keyboard.press("Home");
const least = now.memory.minimum_bytes;
await until("the budget is the least", async () => (await view()).memory.budget_bytes === least);
assert.ok((await view()).memory.planned_bytes <= least);
await page.keyboard.press("ArrowRight");
await page.keyboard.press("ArrowRight");
const more = await until("the budget is more", async () => {
  const { budget_bytes: budget } = (await view()).memory;
  return budget > least && budget;
});
await until("the slider says so", async () => /^[\d.]+ [KM]iB: \d+ stage/.test(await slider.getAttribute("aria-valuetext")));
await until("the field says so", async () => (await page.locator("#budget-text").inputValue()).startsWith((more / 1024).toFixed(0).slice(0, 2)));
await until("the events tell of it", async () => (await text(page, "#events")).includes("memory budget set from"));
const { plan } = await call("GET", "/v1/models/distance/plan");
const stale = plan.workers * plan.stages.length - 1;
const said = stale === 0 ? "misses none" : `misses ${stale} update${stale === 1 ? "" : "s"}`;
await until("the plan is drawn that is followed", async () =>
  (await page.locator(".stage").count()) === plan.stages.length && (await page.locator(".stage .misses").first().innerText()) === said);

// A budget that no plan fits is refused in place, with the least that works.
expected = /422/;
await page.locator("#budget-text").fill("1 KiB");
await page.keyboard.press("Enter");
await page.locator("#budget-refused").waitFor();
assert.match(await text(page, "#budget-refused"), /Refused: .*Take the least/s);
await page.screenshot({ path: `${SHOTS}/refused.png`, fullPage: true });
await page.locator("#budget-refused button").click();
await until("the least is taken", async () => (await view()).memory.budget_bytes === least);
expected = null;
await page.locator("#budget-none").click();
await until("there is no limit", async () => (await view()).memory.budget_bytes === null);
assert.equal(await page.locator("#budget-none").getAttribute("aria-pressed"), "true");

// One row by hand.
await page.locator("#row").fill('{"x": 6, "y": 4}');
await page.locator("#predict").click();
await page.locator("#answer .shares").waitFor();
const { predictions: [predicted] } = await call("POST", "/v1/models/distance/predict", { rows: [{ x: 6, y: 4 }] });
assert.ok((await text(page, "#answer .best")).includes(predicted.label));
assert.ok((await text(page, "#answer .best")).includes(`${(predicted.probabilities[predicted.class] * 100).toFixed(1)} %`));
await page.locator("#label").selectOption("far");
await page.locator("#learn").click();
await until("the row is learned", async () => (await text(page, "#answer")).includes("Learned as row 3,001"));
assert.equal((await view()).rows.learned, 3001);
expected = /422/;
await page.locator("#row").fill('{"x": "six", "y": 4}');
await page.locator("#predict").click();
await page.locator("#answer .refused").waitFor();
expected = null;
await page.locator("#row").fill('{"x": 6');
await page.locator("#predict").click();
await until("what is no JSON is said to be none", async () => (await text(page, "#answer")).includes("not a row in JSON"));

// As it looks, and nothing wider than the screen.
for (const colorScheme of ["light", "dark"]) {
  for (const [name, shape] of Object.entries({ desktop, phone })) {
    const shown = await open({ ...shape, colorScheme }, "/#distance");
    await shown.locator(".stage").first().waitFor();
    await sleep(2500);
    await shown.screenshot({ path: `${SHOTS}/${name}-${colorScheme}.png`, fullPage: true });
    const [wide, inner] = await shown.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(wide <= inner, `${name}: ${wide} pixels are wider than ${inner}`);
    await shown.context().close();
  }
}

// Every control can be reached by Tab and shows that it has the focus.
await page.evaluate(() => document.activeElement.blur());
const reached = new Set();
for (let press = 0; press < 40; press += 1) {
  await page.keyboard.press("Tab");
  const [id, outline] = await page.evaluate(() => [document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]);
  if (id) {
    reached.add(id);
    assert.notEqual(outline, "none", `${id} does not show that it has the focus`);
  }
}
for (const id of ["budget", "budget-text", "budget-none", "row", "predict", "label", "learn"]) assert.ok(reached.has(id), `${id} is not reached by Tab`);

// The service ends: the page says so.
expected = /ERR_|EventSource|Failed to load/;
process.kill(Number(SERVICE));
await until("the page says that the connection is lost", async () => (await text(page, "#link")).includes("connection lost"));
await page.screenshot({ path: `${SHOTS}/lost.png` });

assert.deepEqual(complaints, []);
assert.deepEqual(elsewhere, []);
await browser.close();
