// The plan as a pipeline: its stages, the layers of each, what is in flight, and how stale what a forward reads is.

import { byId, count, el, plural, redraw, say } from "./base.js";

/** Layers without weights belong to the one before them. */
function groups(layers) {
  const found = [];
  for (const layer of layers) {
    if (layer.parameters > 0 || !found.length) found.push({ ...layer, followed: [] });
    else found[found.length - 1].followed.push(layer.name);
  }
  return found;
}

const short = (number) => (number >= 1e6 ? `${(number / 1e6).toFixed(1)}M` : number >= 1000 ? `${(number / 1000).toFixed(number < 10_000 ? 1 : 0)}k` : String(number));
const microseconds = (nanoseconds) => (nanoseconds >= 1e6 ? `${(nanoseconds / 1e6).toFixed(1)} ms` : `${Math.round(nanoseconds / 1000)} µs`);

/** A forward at stage j of P with N workers reads what all steps up to N(P − j) before have made: it misses one fewer. */
export const missed = (workers, stages, stage) => workers * (stages - stage) - 1;

const spent = (times) => times.reduce((sum, time) => sum + time.forward + time.backward + time.update, 0);

function stage(plan, outline, number) {
  const { layers, recompute, accumulation, stride } = plan.stages[number];
  const measured = plan.reckoned?.profile?.layers ?? [];
  const [own, whole] = [spent(measured.slice(layers.start, layers.end)), spent(measured)];
  const misses = missed(plan.workers, plan.stages.length, number);
  const given_up = [
    recompute.length > 0 && "makes activations again",
    accumulation > 1 && `${accumulation} steps share an update`,
    stride > 1 && `learns 1 step of ${stride}`,
  ].filter(Boolean);
  const share = el("i");
  share.style.width = `${whole ? (100 * own) / whole : 0}%`;
  const marks = Array.from({ length: Math.min(misses, 24) }, () => el("i"));
  return el("li", { class: "stage" },
    el("div", { class: "stage-head" },
      el("strong", {}, `Stage ${number}`),
      el("span", { class: misses ? "misses" : "misses none" }, el("span", { class: "marks", "aria-hidden": "true" }, marks), misses ? `misses ${plural(misses, "update")}` : "misses none")),
    el("ul", { class: "layers" }, groups((outline.layers ?? []).slice(layers.start, layers.end)).map((layer) =>
      el("li", { title: layer.parameters ? `${count(layer.parameters)} parameters` : null }, layer.name, layer.parameters ? el("b", {}, short(layer.parameters)) : "", layer.followed.length ? el("small", {}, `+ ${[...new Set(layer.followed)].join(", ")}`) : ""))),
    el("div", { class: "stage-foot" },
      el("span", { class: "share", "aria-hidden": "true" }, share),
      el("span", {}, [whole ? `${microseconds(own)} a step` : null, `holds up to ${plural(misses + 1, "step")}`, ...given_up].filter(Boolean).join(" · "))));
}

/** `known` is what `GET …/plan` says; `model` the newest look. */
export function show(model, known) {
  const host = byId("plan");
  const plan = known?.plan;
  if (!plan?.stages) {
    say(byId("plan-note"), "");
    const at_once = plan?.rows_at_once ? ` It looks at ${plural(plan.rows_at_once, "row")} at once.` : "";
    redraw(host, [known === undefined, at_once], () => el("p", { class: "quiet" }, known ? `This kind of model has no stages.${at_once}` : "…"));
    return;
  }
  const most = plan.workers * plan.stages.length;
  const flying = Math.min(model.steps_in_flight, most);
  const published = plan.publication === "continuous" ? "published while steps are in flight" : "published between steps";
  say(byId("plan-note"), `${plural(plan.stages.length, "stage")}, ${plural(plan.workers, "worker")}, ${plan.step_rows} rows a step, ${published}`);
  redraw(host, known, () => [
    el("p", { class: "flight" }, el("span", { class: "dots", "aria-hidden": "true" }), el("span", { class: "flying" }), el("span", { class: "ways" }, "↓ forward, ↑ backward and update")),
    el("ol", { class: "stages" }, plan.stages.map((_, number) => stage(plan, known.outline, number))),
  ]);
  say(host.querySelector(".flying"), `${plural(flying, "step")} in flight of ${most}`);
  redraw(host.querySelector(".dots"), [flying, most], () => Array.from({ length: Math.min(most, 64) }, (_, number) => el("i", { class: number < flying ? "on" : "" })));
}
