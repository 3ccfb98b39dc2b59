// The page: listens to the service, chooses a model, and has every part show it.

import { NONE, ago, byId, bytesOf, call, count, el, loss, modelPath, percent, rate, redraw, say } from "./base.js";
import * as figures from "./figures.js";
import * as memory from "./memory.js";
import * as plan from "./plan.js";
import * as row from "./row.js";

/** Events that are listed. */
const EVENTS_MAX = 100;
/** After a refused connection, in milliseconds; a lost one the browser makes again by itself. */
const AGAIN = 2000;
/** Looks over which the rate of a stream is taken. */
const LOOKS = 4;
/** Without a look for so long the connection is taken for lost. */
const SILENCE = 5000;

const only = new URLSearchParams(location.search).get("model");
const events = [];
let look = null;
let lookedAt = 0;
const heads = new Map();
let chosen = named(location.hash);
let known = {};

/** The model that a fragment names; none where it cannot be read. */
function named(fragment) {
  try {
    return decodeURIComponent(fragment.slice(1));
  } catch {
    return "";
  }
}

/** Notes how far streams are; looks of the last seconds are kept. */
function arrive(seen) {
  const names = new Set(seen.streams.map(({ name }) => name));
  for (const name of heads.keys()) if (!names.has(name)) heads.delete(name);
  for (const { name, sequence } of seen.streams) {
    heads.set(name, [...(heads.get(name) ?? []), { at: seen.unix_ms, sequence }].slice(-LOOKS));
  }
}

/** Rows a second that a stream accepted lately; null before that is known. */
function arriving(stream) {
  const looks = heads.get(stream) ?? [];
  const [first, last] = [looks[0], looks[looks.length - 1]];
  return looks.length > 1 && last.at > first.at ? (1000 * Math.max(0, last.sequence - first.sequence)) / (last.at - first.at) : null;
}

/** What a look does not have: the plan, the frontier, what models share. Asked for again where the plan is another one. */
async function learn(model) {
  const which = [model.id, model.created, model.memory.planned_bytes, model.memory.budget_bytes, model.memory.minimum_bytes, model.status === "failed"].join();
  if (known.which === which) return;
  known = { which, plan: known.name === model.id ? known.plan : undefined, name: model.id };
  const asked = known;
  const nothing = () => null;
  const [plan_now, frontier, shared] = await Promise.all([
    call("GET", modelPath(model.id, "/plan")).catch(nothing),
    // A model that stands still has nobody who could answer that.
    model.status === "failed" ? null : call("GET", modelPath(model.id, "/frontier")).catch(nothing),
    call("GET", "/v1/memory-budget").catch(nothing),
  ]);
  if (known !== asked) return;
  known.plan = plan_now;
  memory.know(model.id, frontier?.frontier, shared);
  const newest = look?.models.find((seen) => seen.id === model.id);
  if (newest && chosen === model.id) plan.show(newest, known.plan);
}

function choose(name) {
  chosen = name;
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  draw();
}

const STATES = { learning: "learns", idle: "has learned all", refusing: "refuses rows", failed: "stands still" };

function facts(model) {
  const { drift, checkpoint, learning_rate: learning } = model;
  const list = [
    ["version", model.version],
    ["kind", [model.kind, model.spec.network?.architecture ?? model.spec.encoder].filter(Boolean).join(" · ")],
    ["stream", model.stream],
    ["steps", count(model.steps)],
    ["learning rate", learning === null ? NONE : String(Number(learning.toPrecision(4)))],
    ["drifts", drift.last_sequence === null ? count(drift.detected) : `${count(drift.detected)}, at row ${count(drift.last_sequence)}`],
    ["checkpoint", checkpoint === null ? "none yet" : `${checkpoint.version}, ${ago(look.unix_ms / 1000 - checkpoint.unix_seconds)}`],
  ];
  return list.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { "data-figure": name }, value)));
}

function showModel(model) {
  say(byId("name"), model.id);
  const status = byId("status");
  status.className = `status ${model.status}`;
  say(status, STATES[model.status] ?? model.status);
  redraw(byId("facts"), [model.version, model.steps, model.learning_rate, model.drift, model.checkpoint, Math.floor(look.unix_ms / 10_000)], () => facts(model));
  const trouble = byId("trouble");
  const text = model.failure !== null ? `It stands still, and its last snapshot goes on answering. ${model.failure}` : model.refusing !== null ? `It refuses rows, and they teach it nothing: ${model.refusing}` : "";
  trouble.hidden = text === "";
  say(trouble, text);
  figures.show(model, arriving(model.stream));
  memory.show(model);
  plan.show(model, known.name === model.id ? known.plan : undefined);
  row.show(model, look.streams.find((stream) => stream.name === model.stream));
  learn(model);
}

function pills() {
  redraw(byId("models"), [look.models.map(({ id, status }) => [id, status]), chosen], () => look.models.map(({ id, status }) =>
    el("button", { type: "button", "aria-pressed": String(id === chosen), onclick: () => choose(id) }, el("i", { class: status, "aria-hidden": "true" }), id)));
}

function tables() {
  byId("tables").hidden = look.models.length + look.streams.length === 0;
  byId("model-rows").replaceChildren(...look.models.map((model) => el("tr", { "aria-current": model.id === chosen ? "true" : null },
    el("th", { scope: "row" }, model.id),
    el("td", {}, el("span", { class: `status ${model.status}` }, model.status)),
    el("td", {}, model.stream),
    el("td", { class: "n" }, model.version),
    el("td", { class: "n" }, percent(model.sliding.accuracy)),
    el("td", { class: "n" }, loss(model.sliding.loss)),
    el("td", { class: "n" }, rate(model.rows_per_second)),
    el("td", { class: "n" }, count(model.lag_rows)),
    el("td", { class: "n" }, bytesOf(model.memory.used_bytes, model.memory.budget_bytes ?? model.memory.planned_bytes)))));
  byId("stream-rows").replaceChildren(...look.streams.map((stream) => el("tr", {},
    el("th", { scope: "row" }, stream.name),
    el("td", { class: "n" }, count(stream.sequence)),
    el("td", { class: "n" }, rate(arriving(stream.name))),
    el("td", { class: "n" }, count(stream.first_sequence)))));
}

/** What to do where nothing learns yet. */
function empty() {
  const base = location.origin;
  const json = "-H 'content-type: application/json'";
  const stream = `curl -X PUT ${base}/v1/streams/points ${json} -d '{
  "fields": [{"name": "x", "type": "numeric"}, {"name": "y", "type": "numeric"}],
  "target": {"name": "label", "type": "classes", "classes": ["near", "far"]}}'`;
  const name = look.streams[0]?.name ?? "points";
  const model = `curl -X PUT ${base}/v1/models/${name === "points" ? "distance" : name} ${json} -d '{
  "kind": "network", "stream": "${name}"}'`;
  const post = `curl ${base}/v1/streams/points/batches -H 'content-type: text/csv' --data-binary \\
'x,y,label
0.1,0.2,near
9.0,8.5,far
'`;
  const others = look.models.length > 0;
  say(byId("empty-title"), others ? `There is no model ${chosen}` : "Nothing learns here yet");
  byId("empty-code").hidden = others;
  if (others) {
    say(byId("empty-text"), "It was deleted, or never made. Choose another one above.");
    return;
  }
  const has = look.streams.length > 0;
  say(byId("empty-text"), has ? "There is a stream, and no model learns from it. Make one:" : "Make a stream, a model that learns from it, and post rows:");
  say(byId("empty-code"), has ? model : [stream, model, post].join("\n\n"));
}

function draw() {
  if (!look) return;
  // One that was chosen and is gone is not silently another: a budget would be set for that.
  if (!chosen && look.models.length) chosen = look.models[0].id;
  const model = look.models.find(({ id }) => id === chosen);
  pills();
  byId("live").hidden = !model;
  byId("empty").hidden = Boolean(model);
  document.title = model ? `${model.id} · ${model.sliding.accuracy === null ? "Mustela" : percent(model.sliding.accuracy)}` : "Mustela";
  if (model) showModel(model);
  else empty();
  tables();
}

const WORDS = { budget: "budget", plan: "plan", drift: "drift", skip: "skip", quarantine: "quarantine", learning_rate: "learning rate", setting: "setting", failure: "failure", model_created: "made", model_restored: "restored", model_deleted: "deleted" };
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

function listEvents() {
  redraw(byId("events"), events.map(({ id }) => id), () => (events.length ? events : [null]).map((event) => event === null ? el("li", { class: "quiet" }, "nothing yet") :
    el("li", { class: event.kind },
      el("time", { datetime: new Date(event.unix_ms).toISOString() }, clock.format(event.unix_ms)),
      el("span", { class: "kind" }, WORDS[event.kind] ?? event.kind),
      el("p", {}, el("b", {}, event.model), ` ${event.text} `, el("span", { class: "quiet" }, `at ${event.version}`)))));
}

function heard(event) {
  if (events.some(({ id }) => id === event.id)) return;
  events.unshift(event);
  events.sort((a, b) => b.id - a.id);
  events.length = Math.min(events.length, EVENTS_MAX);
  if (event.model === chosen && ["plan", "budget", "model_restored"].includes(event.kind)) known.which = null;
  listEvents();
}

function link(state, text) {
  byId("link").className = `link ${state}`;
  say(byId("link").lastElementChild, text);
  document.body.classList.toggle("stale", state === "lost");
}

function listen() {
  const source = new EventSource(only ? `/v1/events?model=${encodeURIComponent(only)}` : "/v1/events");
  source.addEventListener("figures", ({ data }) => {
    look = JSON.parse(data);
    lookedAt = performance.now();
    arrive(look);
    figures.remember(look, arriving);
    link("on", "live");
    draw();
  });
  source.addEventListener("event", ({ data }) => heard(JSON.parse(data)));
  source.addEventListener("error", () => {
    link("lost", "connection lost, trying again");
    if (source.readyState !== EventSource.CLOSED) return;
    setTimeout(listen, AGAIN);
  });
}

addEventListener("hashchange", () => {
  chosen = named(location.hash);
  draw();
});
setInterval(() => {
  if (look && performance.now() - lookedAt > SILENCE) link("lost", "connection lost, trying again");
}, 1000);
listEvents();
listen();
