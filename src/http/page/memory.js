// The memory budget: a slider over what more memory would buy, and the bytes that are held, by part, against plan and budget.

import { byId, bytes, bytesOf, call, el, modelPath, percent, rate, redraw, say, svg } from "./base.js";

const HEIGHT = 158;
const TOP = 24;
const BOTTOM = 4;
/** Half of the slider's thumb: its middle goes from here to as far from the other end. */
const EDGE = 10;
/** A key that is held down is one wish, not thirty. */
const PATIENCE = 250;

const slider = byId("budget");
const field = byId("budget-text");
const none = byId("budget-none");
const STEPS = Number(slider.max);

let model = null;
let points = [];
let shared = Infinity;
let wish;
let timer = 0;
let asking = false;
/** How long the last change took; it stays until the next wish. */
let took = "";

/** From the least that works to a little beyond the last plan that more memory would buy. */
function range() {
  const { minimum_bytes: least, planned_bytes: planned, budget_bytes: budget } = model.memory;
  const last = points.length ? points[points.length - 1].bytes : planned;
  const most = Math.max(last * 1.25, planned * 1.1, budget ?? 0, least * 1.5);
  return [least, Math.max(Math.min(most, shared), least + 1)];
}

function place(value) {
  const [least, most] = range();
  return Math.max(0, Math.min(1, Math.log(value / least) / Math.log(most / least)));
}

function valueAt(position) {
  const [least, most] = range();
  if (position <= 0) return least;
  return position >= STEPS ? Math.floor(most) : Math.ceil(least * (most / least) ** (position / STEPS));
}

/** The best plan of the frontier within a budget. */
const bought = (budget) => points.filter((point) => budget === null || point.bytes <= budget).pop();

const planText = ({ stages, workers }) => `${stages.length} ${stages.length === 1 ? "stage" : "stages"} × ${workers} ${workers === 1 ? "worker" : "workers"}`;

/** The point of the plan that is followed, or would be under the wish; a plan by hand, or for a slow stream, may be on none. */
const meant = () => (typeof wish === "number" || wish === null ? bought(wish) : points.find((point) => point.bytes === model.memory.planned_bytes));

function saying() {
  const point = meant();
  if (!point) return "";
  const part = point.adaptation_rate / points[points.length - 1].adaptation_rate;
  const share = part > 0.995 ? "" : `, ${percent(part, 0)} of the most`;
  return `${planText(point)}, about ${rate(point.rows_per_second)} rows/s${share}`;
}

/** What the slider is set to: the wish while there is one, and else what holds. */
const budgetShown = () => (wish === null || typeof wish === "number" ? wish : model.memory.budget_bytes);

function frontier() {
  const host = byId("frontier");
  const width = host.clientWidth;
  if (!width || !model) return;
  const budget = budgetShown();
  redraw(host, [width, points, range(), budget, wish === undefined, model.memory.planned_bytes], () => {
    const x = (value) => EDGE + place(value) * (width - 2 * EDGE);
    const most = Math.max(...points.map((point) => point.adaptation_rate), 1e-9);
    const floor = HEIGHT - BOTTOM;
    const y = (value) => TOP + (1 - value / most) * (floor - TOP) * 0.92;
    const root = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": `What memory buys: ${points.map((point) => `${bytes(point.bytes)}: ${rate(point.adaptation_rate)}`).join(", ")}` });
    const corners = [];
    points.forEach((point, number) => {
      if (number) corners.push(`${x(point.bytes)},${y(points[number - 1].adaptation_rate)}`);
      corners.push(`${x(point.bytes)},${y(point.adaptation_rate)}`);
    });
    if (points.length) {
      const end = `${width - EDGE},${y(points[points.length - 1].adaptation_rate)}`;
      const way = [...corners, end].join(" ");
      root.append(svg("polygon", { class: "area", points: `${x(points[0].bytes)},${floor} ${way} ${width - EDGE},${floor}` }));
      root.append(svg("polyline", { class: "line first", points: way }));
    }
    root.append(svg("line", { class: "grid", x1: 0, x2: width, y1: floor, y2: floor }));
    const here = meant();
    const planned = x(model.memory.planned_bytes);
    root.append(svg("line", { class: "cross", x1: planned, x2: planned, y1: TOP - 8, y2: floor }));
    for (const point of points) {
      root.append(svg("circle", { class: point === here ? "point here" : "point", cx: x(point.bytes), cy: y(point.adaptation_rate), r: point === here ? 5 : 3 }, svg("title", {}, `${bytes(point.bytes)}: ${planText(point)}, adaptation rate ${rate(point.adaptation_rate)} rows/s`)));
    }
    const at = budget === null ? width - EDGE : x(budget);
    root.append(svg("line", { class: "mark", x1: at, x2: at, y1: TOP - 8, y2: HEIGHT }));
    if (points.length) {
      root.append(svg("text", { class: "axis", x: 0, y: 10 }, `adaptation rate, up to ${rate(most)} rows/s`));
    } else {
      root.append(svg("text", { class: "axis", x: 0, y: 10 }, "this kind of model has no frontier"));
    }
    return root;
  });
  const [least, highest] = range();
  redraw(byId("budget-scale"), [least, highest], () => [el("span", {}, `least ${bytes(least)}`), el("span", {}, `${bytes(highest)}, ${highest < shared ? "more buys nothing" : "all that models share"}`)]);
}

function controls() {
  const budget = budgetShown();
  const position = budget === null ? STEPS : Math.round(place(budget) * STEPS);
  if (Number(slider.value) !== position && wish === undefined) slider.value = position;
  slider.setAttribute("aria-valuetext", `${budget === null ? "no limit" : bytes(budget)}: ${saying()}`);
  none.setAttribute("aria-pressed", String(budget === null));
  if (document.activeElement !== field) field.value = budget === null ? "" : bytes(budget);
  slider.disabled = model.status === "failed";
  say(byId("budget-said"), [took, saying()].filter(Boolean).join(": "));
}

function draw() {
  frontier();
  controls();
}

/** Asks for a budget soon; the newest wish counts. `value` is bytes, a text such as "12 MiB", or null. */
function want(value) {
  wish = value;
  took = "";
  refused(null);
  clearTimeout(timer);
  timer = setTimeout(ask, PATIENCE);
}

async function ask() {
  if (asking) {
    timer = setTimeout(ask, PATIENCE);
    return;
  }
  const asked = wish;
  const of = model.id;
  const began = performance.now();
  asking = true;
  took = "…";
  controls();
  try {
    const memory = await call("PUT", modelPath(of, "/memory-budget"), { budget: asked });
    if (model.id === of) {
      model.memory = memory;
      took = `followed in ${Math.round(performance.now() - began)} ms`;
    }
  } catch (problem) {
    took = "";
    if (model.id === of) refused(problem);
  } finally {
    asking = false;
    if (wish === asked) wish = undefined;
    if (document.activeElement === field && wish === undefined) field.select();
    draw();
  }
}

function refused(problem) {
  const host = byId("budget-refused");
  host.hidden = problem === null;
  if (problem === null) return host.replaceChildren();
  const least = problem.minimum_bytes;
  host.replaceChildren(el("span", {}, `Refused: ${problem.detail}.`), least !== undefined && model.memory.minimum_bytes === least ? el("button", { type: "button", onclick: () => want(least) }, `Take the least, ${bytes(least)}`) : "");
}

slider.addEventListener("input", () => {
  want(valueAt(Number(slider.value)));
  draw();
});
none.addEventListener("click", () => {
  want(null);
  draw();
});
field.addEventListener("change", () => {
  const text = field.value.trim();
  want(text === "" ? null : /^\d+$/.test(text) ? Number(text) : text.replace(/\s+/g, ""));
});
new ResizeObserver(frontier).observe(byId("frontier"));

/** The parts of the ledger, from what stays to what comes and goes. */
const PARTS = ["weights", "weight_versions", "snapshots", "optimiser", "compensation", "gradients", "activations", "workspace", "learner", "queued_rows"];
const words = (part) => part.replace("_", " ");

function ledger() {
  const { memory } = model;
  const { parts, planned_bytes: planned, used_bytes: used, high_water_bytes: high, budget_bytes: budget } = memory;
  const planned_parts = PARTS.map((part) => [part, parts[part]?.planned_bytes ?? 0]);
  const overhead = Math.max(0, planned - planned_parts.reduce((sum, [, value]) => sum + value, 0));
  const held = PARTS.map((part) => [part, parts[part]?.used_bytes ?? 0]);
  const scale = Math.max(planned, used, high, budget === null ? 0 : Math.min(budget, planned * 1.6)) * 1.02;
  const bar = (name, list, total) => {
    const stack = el("div", { class: "stack", role: "img", "aria-label": `${name}: ${bytes(total)}` });
    for (const [part, value] of list) {
      if (value <= 0) continue;
      const piece = el("i", { class: `part ${part}`, title: `${words(part)}: ${bytes(value)}` });
      piece.style.width = `${(100 * value) / scale}%`;
      stack.append(piece);
    }
    const marks = [[high, "high", `most at once: ${bytes(high)}`], [budget, "limit", budget === null ? "" : `budget: ${bytes(budget)}`]];
    for (const [value, kind, title] of marks) {
      if (value === null || value > scale || (kind === "high" && name !== "holds")) continue;
      const line = el("b", { class: kind, title });
      line.style.left = `${(100 * value) / scale}%`;
      stack.append(line);
    }
    return el("div", { class: "bar" }, el("span", { class: "bar-name" }, name), stack, el("span", { class: "bar-sum" }, bytes(total)));
  };
  redraw(byId("ledger"), [memory.budget_bytes, planned_parts, held, high, planned], () => [
    bar("plan", [...planned_parts, ["overhead", overhead]], planned),
    bar("holds", held, used),
    el("ul", { class: "legend" }, PARTS.filter((part) => parts[part] && parts[part].planned_bytes + parts[part].used_bytes > 0).map((part) =>
      el("li", {}, el("i", { class: `part ${part}`, "aria-hidden": "true" }), el("span", {}, words(part)), el("span", { class: "n" }, bytesOf(parts[part].used_bytes, parts[part].planned_bytes))))),
  ]);
}

/** A look at the model has come. */
export function show(seen) {
  const other = model?.id !== seen.id;
  model = seen;
  if (other) {
    [points, wish, took] = [[], undefined, ""];
    clearTimeout(timer);
    refused(null);
  }
  const { budget_bytes: budget, high_water_bytes: high, allotted_bytes: allotted } = seen.memory;
  say(byId("memory-note"), `${budget === null ? "no limit of its own" : `budget ${bytes(budget)}`} · at most ${bytes(high)} at once · may have ${bytes(allotted)}`);
  draw();
  ledger();
}

/** The frontier was asked for, and what all models share. */
export function know(name, frontier, process) {
  if (model?.id !== name) return;
  points = frontier?.points ?? [];
  shared = process?.shared_bytes ?? Infinity;
  draw();
}
