// One row by hand: what the model says of it, and, with a label, what it learns from it.

import { byId, call, count, el, loss, modelPath, percent } from "./base.js";

const text = byId("row");
const pad = byId("pad");
/** The largest picture that can be drawn on. */
const SIDE_MAX = 128;
const SHOWN = 5;
/** A ring in 8 × 8 points: the service brings any file to the side that it needs. */
const RING = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAIAQAAAADsdIMmAAAAEklEQVR42mOwYXBiaIRCJwYbABgQAwH1j2TtAAAAAElFTkSuQmCC";

let model = null;
let schema = null;
let picture = null;

/** Whether a point of the unit square is inside of a shirt: an example that any size of picture can show. */
function shirt(x, y) {
  const body = x > 0.3 && x < 0.7 && y > 0.18 && y < 0.88;
  const sleeve = Math.abs(x - 0.5) < 0.44 && y > 0.18 + Math.abs(x - 0.5) * 0.25 && y < 0.46 + (Math.abs(x - 0.5) - 0.3) * 0.3;
  const neck = (x - 0.5) ** 2 + (y - 0.16) ** 2 < 0.012;
  return (body || sleeve) && !neck;
}

/** A tensor that can be drawn on; a picture may come as one, too. */
function pictureOf({ name, type, side, shape = [3, side, side], element = "u8" }) {
  if (type !== "tensor" && type !== "image") return null;
  const [channels, height, width] = shape.length === 3 ? shape : shape.length === 2 ? [1, ...shape] : [0, 0, 0];
  if (![1, 3].includes(channels) || Math.max(height, width) > SIDE_MAX || Math.min(height, width) < 2) return null;
  return { name, channels, height, width, full: element === "u8" ? 255 : 1 };
}

function example(field, seen) {
  const { name, type, shape } = field;
  if (type === "numeric") return [name, 0.5];
  if (type === "categorical") return [name, "a"];
  if (type === "image" && !seen) return [name, RING];
  if (!seen) return [name, new Array(shape.reduce((product, side) => product * side, 1)).fill(0)];
  const { channels, height, width, full } = seen;
  const ink = full === 255 ? 190 : 0.75;
  return [name, Array.from({ length: channels * height * width }, (_, index) => {
    const at = index % (height * width);
    return shirt(((at % width) + 0.5) / width, (Math.floor(at / width) + 0.5) / height) ? ink : 0;
  })];
}

/** JSON as a person writes it: a key a line, an array in one. */
const written = (row) => `{\n${Object.entries(row).map(([name, value]) => `  ${JSON.stringify(name)}: ${JSON.stringify(value)}`).join(",\n")}\n}`;

function read() {
  try {
    const row = JSON.parse(text.value);
    if (row === null || typeof row !== "object" || Array.isArray(row)) throw new Error("it is no object");
    return row;
  } catch (error) {
    throw { detail: `this is not a row in JSON: ${error.message}` };
  }
}

function paint() {
  if (!picture) return;
  let values = [];
  try {
    values = [read()[picture.name]].flat(Infinity);
  } catch {
    return;
  }
  const { channels, height, width, full } = picture;
  const context = pad.getContext("2d");
  const image = context.createImageData(width, height);
  for (let at = 0; at < height * width; at += 1) {
    for (let colour = 0; colour < 3; colour += 1) {
      const value = values[channels === 3 ? colour * height * width + at : at];
      image.data[4 * at + colour] = (255 * (Number(value) || 0)) / full;
    }
    image.data[4 * at + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** Draws with a soft point; with the right button or Shift it rubs out. */
function draw(event) {
  if (!picture || !(event.buttons & 3)) return;
  event.preventDefault();
  const { channels, height, width, full } = picture;
  const frame = pad.getBoundingClientRect();
  const at = [((event.clientX - frame.left) / frame.width) * width, ((event.clientY - frame.top) / frame.height) * height];
  const rubs = event.shiftKey || event.buttons & 2;
  try {
    const row = read();
    const values = [row[picture.name]].flat(Infinity);
    const reach = Math.max(1, width / 18);
    for (let index = 0; index < height * width; index += 1) {
      const far = Math.hypot((index % width) + 0.5 - at[0], Math.floor(index / width) + 0.5 - at[1]);
      if (far > reach * 1.5) continue;
      for (let channel = 0; channel < channels; channel += 1) {
        const place = channel * height * width + index;
        const ink = Math.max(0, 1 - far / (reach * 1.5)) * full;
        const value = rubs ? 0 : Math.max(Number(values[place]) || 0, full === 255 ? Math.round(ink) : Number(ink.toFixed(3)));
        values[place] = value;
      }
    }
    text.value = written({ ...row, [picture.name]: values });
    paint();
  } catch {
    // What stands there is no row; the answer to the button says so.
  }
}

const say = (...children) => byId("answer").replaceChildren(...children);
const fault = (problem) => say(el("p", { class: "refused" }, problem.errors?.length ? problem.errors.map(({ column, reason }) => `${column ? `${column}: ` : ""}${reason}`).join("; ") : problem.detail));

function predicted(answer, milliseconds) {
  const [prediction] = answer.predictions;
  const note = el("p", { class: "quiet" }, `version ${answer.model_version}, ${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms there and back`);
  if (prediction.probabilities === undefined) return [el("p", { class: "value" }, String(Number(prediction.value.toPrecision(6)))), note];
  const names = schema.target?.classes;
  const name = (index) => (Array.isArray(names) ? names[index] : `class ${index}`);
  const order = prediction.probabilities.map((share, index) => [share, index]).sort((a, b) => b[0] - a[0]).slice(0, SHOWN);
  return [el("ol", { class: "shares" }, order.map(([share, index], place) => {
    const bar = el("i", { "aria-hidden": "true" });
    bar.style.width = `${100 * share}%`;
    return el("li", { class: place ? "" : "best" }, el("span", {}, name(index)), el("span", { class: "share" }, bar), el("span", { class: "n" }, percent(share)));
  })), note];
}

async function predict() {
  const row = read();
  if (schema.target) delete row[schema.target.name];
  const began = performance.now();
  const answer = await call("POST", modelPath(model.id, "/predict"), { rows: [row] });
  return predicted(answer, performance.now() - began);
}

async function teach() {
  const row = read();
  const label = byId("label").value.trim();
  const { target } = schema;
  row[target.name] = target.type === "classes" && Array.isArray(target.classes) ? label : Number(label);
  if (label === "") throw { detail: "a label is missing: what the row turned out to be" };
  if (schema.row_id && row[schema.row_id] === undefined) row[schema.row_id] = `page-${Date.now()}`;
  if (schema.event_time && row[schema.event_time] === undefined) row[schema.event_time] = Date.now();
  const before = await predict().catch(() => []);
  const path = `/v1/streams/${encodeURIComponent(model.stream)}/batches?wait=applied&model=${encodeURIComponent(model.id)}`;
  const answer = await call("POST", path, { rows: [row] });
  const how = [
    answer.applied ? `Learned as row ${count(answer.sequence)}` : `Row ${count(answer.sequence)} is in the log, and will be learned`,
    answer.accuracy !== undefined && answer.accuracy !== null ? (answer.accuracy === 1 ? "it was right before" : "it was wrong before") : null,
    answer.loss !== undefined && answer.loss !== null ? `loss ${loss(answer.loss)}` : null,
  ].filter(Boolean);
  return [el("p", {}, `${how.join(", ")}.`), ...before];
}

async function while_disabled(button, work) {
  button.disabled = true;
  try {
    say(...(await work()));
  } catch (problem) {
    fault(problem);
  } finally {
    button.disabled = false;
    button.focus();
  }
}

function labels(target) {
  if (target.type === "classes" && Array.isArray(target.classes) && target.classes.length <= 1000) {
    return el("select", { id: "label" }, target.classes.map((name) => el("option", {}, name)));
  }
  return el("input", { id: "label", size: 8, inputmode: "decimal", value: "0" });
}

byId("predict").addEventListener("click", (event) => while_disabled(event.currentTarget, predict));
text.addEventListener("input", paint);
for (const kind of ["pointerdown", "pointermove"]) pad.addEventListener(kind, draw);
pad.addEventListener("contextmenu", (event) => event.preventDefault());

/** Begins anew for another model; `stream` is the view of what it learns from. */
export function show(seen, stream) {
  const same = model?.id === seen.id && schema && JSON.stringify(schema) === JSON.stringify(stream?.schema);
  model = seen;
  if (same || !stream) return;
  schema = stream.schema;
  picture = schema.fields.map(pictureOf).find(Boolean) ?? null;
  text.value = written(Object.fromEntries(schema.fields.map((field) => example(field, picture))));
  text.classList.toggle("one-line", picture !== null);
  pad.hidden = picture === null;
  if (picture) Object.assign(pad, { width: picture.width, height: picture.height });
  paint();
  const host = byId("teach");
  host.hidden = !schema.target;
  host.replaceChildren(...(schema.target ? [el("label", {}, `${schema.target.name} `, labels(schema.target)), el("button", { type: "button", id: "learn", onclick: (event) => while_disabled(event.currentTarget, teach) }, "Learn it")] : []));
  say(el("p", { class: "quiet" }, "What the newest snapshot says of it comes here."));
}
