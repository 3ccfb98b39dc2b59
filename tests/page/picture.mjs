// Run by check.sh: docs/live-page.png, the page while Fashion-MNIST is learned and after its budget was changed.
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { setTimeout as sleep } from "node:timers/promises";

const { BINARY, DOORS, SHOTS, PLAYWRIGHT } = process.env;
const { chromium } = await import(PLAYWRIGHT);
const data = fileURLToPath(new URL("../../data/fashion-mnist/", import.meta.url));

async function put(path, body) {
  const answer = await fetch(DOORS + path, { method: "PUT", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(`${path}: ${await answer.text()}`);
  return answer.json();
}

await put("/v1/streams/fashion", {
  fields: [{ name: "pixels", type: "tensor", shape: [1, 28, 28], element: "u8" }],
  target: { name: "label", type: "classes", classes: ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"] },
});
const { memory } = await put("/v1/models/fashion", {
  kind: "network", stream: "fashion", network: { architecture: "mnistnet" }, optimiser: { type: "sgd", momentum: 0.9 }, learning_rate: 0.02, step_rows: 16,
});
const replay = spawn(BINARY, ["replay", `${data}t10k-images-idx3-ubyte.gz`, "--labels", `${data}t10k-labels-idx1-ubyte.gz`, "--stream", "fashion", "--rate", process.env.RATE ?? "300", "--batch", "16", "--url", DOORS], { stdio: "ignore" });

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1440, height: 1250 }, deviceScaleFactor: 1, colorScheme: "light" });
await page.goto(`${DOORS}/`);
await sleep(12_000);
await put("/v1/models/fashion/memory-budget", { budget: memory.minimum_bytes });
await sleep(10_000);
await put("/v1/models/fashion/memory-budget", { budget: Math.round(memory.minimum_bytes * 2.2) });
await sleep(10_000);
await page.locator("#predict").click();
await page.locator("#answer .shares").waitFor();
await page.evaluate(() => document.activeElement.blur());
await sleep(1500);
await page.screenshot({ path: `${SHOTS}/live-page.png` });
await browser.close();
replay.kill();
