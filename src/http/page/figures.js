// The four tiles: how well, how fast, how far behind. What was before this page was opened is in Prometheus, not here.

import { NONE, byId, count, el, loss, percent, rate, say } from "./base.js";
import { Chart } from "./chart.js";

/** Looks that are kept: a quarter of an hour. */
const KEPT = 900;

const history = new Map();

/** Notes a look at every model; `arriving` gives the rows a second of a stream. */
export function remember(figures, arriving) {
  const there = new Set();
  for (const model of figures.models) {
    there.add(model.id);
    const points = history.get(model.id) ?? [];
    history.set(model.id, points);
    points.push({
      t: figures.unix_ms,
      accuracy: model.sliding.accuracy,
      accuracyWhole: model.online.accuracy,
      loss: model.sliding.loss,
      lossWhole: model.online.loss,
      rate: model.rows_per_second,
      arriving: arriving(model.stream),
      lag: model.lag_rows,
    });
    if (points.length > KEPT) points.shift();
  }
  for (const name of history.keys()) if (!there.has(name)) history.delete(name);
}

function tile(id, title, lines, options) {
  const host = byId(id);
  const value = el("p", { class: "value", "data-figure": id });
  const beside = el("p", { class: "beside" });
  const chart = el("div", { class: "plot" });
  host.append(el("h2", {}, title), value, beside, chart);
  const drawn = new Chart(chart, { lines, label: `${title} over the last minutes`, ...options });
  return (points, text, note) => {
    say(value, text);
    beside.replaceChildren(...note);
    drawn.set(points);
  };
}

const plain = (value) => `${+value.toPrecision(3)}`;
const short = (value, axis) => (value >= 10_000 ? `${+(value / 1000).toFixed(1)}k` : axis && value < 1000 ? plain(value) : rate(value));
const key = (kind, text) => el("span", { class: `key ${kind}` }, text);

const tiles = {
  accuracy: tile("tile-accuracy", "Online accuracy", [{ key: "accuracyWhole", kind: "second" }, { key: "accuracy", kind: "first area" }], {
    say: (value, axis) => (axis ? `${+(value * 100).toFixed(1)} %` : percent(value)), least: 0.02, most: 1,
  }),
  loss: tile("tile-loss", "Online loss", [{ key: "lossWhole", kind: "second" }, { key: "loss", kind: "first area" }], { say: (value, axis) => (axis ? plain(value) : loss(value)) }),
  rate: tile("tile-rate", "Rows a second", [{ key: "arriving", kind: "second" }, { key: "rate", kind: "first area" }], { say: short, zero: true, least: 10 }),
  lag: tile("tile-lag", "Rows behind", [{ key: "lag", kind: "first area" }], { say: short, zero: true, least: 10 }),
};

export function show(model, arriving) {
  const points = history.get(model.id) ?? [];
  const { sliding, online, rows } = model;
  const newest = () => key("first", `newest ${count(sliding.rows)}`);
  const all = (value) => key("second", `all ${count(online.rows)}: ${value}`);
  tiles.accuracy(points, percent(sliding.accuracy), sliding.accuracy === null && online.rows > 0 ? ["a regression has none"] : [newest(), all(percent(online.accuracy))]);
  tiles.loss(points, loss(sliding.loss), [newest(), all(loss(online.loss))]);
  tiles.rate(points, rate(model.rows_per_second), [key("first", "learned"), key("second", `arriving ${arriving === null ? NONE : rate(arriving)}`)]);
  const passed = [["skipped", rows.skipped], ["quarantined", rows.quarantined], ["held out", rows.held_out], ["expired", rows.expired], ["wait for labels", rows.waiting_for_label]];
  const told = passed.filter(([, number]) => number > 0).map(([word, number]) => `${count(number)} ${word}`);
  tiles.lag(points, count(model.lag_rows), [`${count(rows.learned + rows.learned_in_part)} learned of ${count(rows.accepted)}`, ...told].map((text) => el("span", {}, text)));
}
