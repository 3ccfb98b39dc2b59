// What every part of the page stands on: elements, numbers for people, and the doors.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** An HTML element with attributes and children; a text is text, never markup. */
export const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
export const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

/** Sets a text where it is another one, so that a screen reader is told only of changes. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Replaces children where what they show has changed, so that focus and selections stay. */
export function redraw(node, key, draw) {
  const now = JSON.stringify(key);
  if (node.shown === now) return;
  node.shown = now;
  node.replaceChildren(...[draw()].flat());
}

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const NONE = "–";

export const count = (value) => (value === null || value === undefined ? NONE : grouped.format(value));
export const rate = (value) => (value === null || value === undefined ? NONE : value < 10 && value > 0 ? value.toFixed(1) : grouped.format(value));
export const percent = (value, digits = 1) => (value === null || value === undefined ? NONE : `${(value * 100).toFixed(digits)} %`);
export const loss = (value) => (value === null || value === undefined ? NONE : value >= 100 ? grouped.format(value) : value >= 1 ? value.toFixed(2) : value.toFixed(3));

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let left = value;
  while (left >= 1024 && unit < units.length - 1) {
    left /= 1024;
    unit += 1;
  }
  const digits = unit === 0 ? 0 : left < 10 ? 2 : left < 100 ? 1 : 0;
  return `${left.toFixed(digits)} ${units[unit]}`;
}

/** So much of so much, in one unit where both have the same. */
export function bytesOf(part, whole) {
  const [one, other] = [bytes(part), bytes(whole)];
  const [, unit] = other.split(" ");
  return `${one.endsWith(` ${unit}`) ? one.split(" ")[0] : one} of ${other}`;
}

export function ago(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

export const plural = (number, word, words = `${word}s`) => `${count(number)} ${number === 1 ? word : words}`;

/** Calls a door; throws what it says against it. */
export async function call(method, path, body) {
  const asked = { method };
  if (body !== undefined) {
    asked.headers = { "content-type": "application/json" };
    asked.body = typeof body === "string" ? body : JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, asked);
  } catch {
    throw { detail: "the service does not answer" };
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw { detail: `${answer.status}`, ...said };
  return said;
}

export const modelPath = (model, rest = "") => `/v1/models/${encodeURIComponent(model)}${rest}`;
