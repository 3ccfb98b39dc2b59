// A line chart over the last minutes, as SVG. It draws what it is given and keeps nothing but the pointer.

import { svg } from "./base.js";

const HEIGHT = 92;
const TOP = 8;
const BOTTOM = 16;

/** Round bounds around what is there, never narrower than `least`. */
export function bounds(values, { zero = false, least = 0, most = Infinity } = {}) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (zero) low = Math.min(0, low);
  const narrow = Math.max(least, Math.abs(high) * 0.02, 1e-9);
  if (high - low < narrow) {
    const middle = (high + low) / 2;
    low = zero ? low : middle - narrow / 2;
    high = zero ? low + narrow : middle + narrow / 2;
  }
  const step = 10 ** Math.floor(Math.log10((high - low) / 2));
  const fit = [1, 2, 5, 10].map((factor) => factor * step).find((candidate) => (high - low) / candidate <= 3) ?? step * 10;
  low = Math.floor(low / fit + 1e-9) * fit;
  high = Math.min(most, Math.ceil(high / fit - 1e-9) * fit);
  return { low, high, fit };
}

export class Chart {
  /** `lines`: [{ key, kind }], the one drawn last first; `say` makes a text of a value. */
  constructor(host, { lines, say, label, ...range }) {
    Object.assign(this, { host, lines, say, label, range, points: [], at: null });
    this.root = svg("svg", { class: "chart", role: "img", "aria-label": label });
    host.append(this.root);
    new ResizeObserver(() => this.draw()).observe(host);
    this.root.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.root.addEventListener("pointerleave", () => this.point(null));
  }

  set(points) {
    this.points = points;
    this.draw();
  }

  point(x) {
    this.at = x;
    this.draw();
  }

  draw() {
    const width = this.host.clientWidth;
    if (!width) return;
    this.root.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.root.setAttribute("height", HEIGHT);
    const values = this.points.flatMap((point) => this.lines.map(({ key }) => point[key])).filter((value) => Number.isFinite(value));
    if (!values.length) {
      this.root.replaceChildren(svg("text", { x: 0, y: HEIGHT / 2, class: "axis" }, "nothing to draw yet"));
      return;
    }
    const { low, high, fit } = bounds(values, this.range);
    const last = this.points[this.points.length - 1].t;
    const span = Math.max(30, (last - this.points[0].t) / 1000) * 1000;
    const right = width - 38;
    const x = (t) => right - ((last - t) / span) * right;
    const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const drawn = [];
    for (let tick = low; tick <= high + fit / 1e6; tick += fit) {
      drawn.push(svg("line", { x1: 0, x2: right, y1: y(tick), y2: y(tick), class: "grid" }));
      drawn.push(svg("text", { x: right + 6, y: y(tick) + 3.5, class: "axis" }, this.say(tick, true)));
    }
    drawn.push(svg("text", { x: 0, y: HEIGHT - 3, class: "axis" }, span < 90_000 ? `${Math.round(span / 1000)} s ago` : `${Math.round(span / 60_000)} min ago`));
    drawn.push(svg("text", { x: right, y: HEIGHT - 3, class: "axis end" }, "now"));
    for (const { key, kind } of this.lines) drawn.push(...this.line(key, kind, x, y, y(low)));
    if (this.at !== null) drawn.push(...this.cross(x, y, right));
    this.root.replaceChildren(...drawn);
  }

  line(key, kind, x, y, ground) {
    const points = this.points.filter((point) => Number.isFinite(point[key])).map((point) => [x(point.t).toFixed(1), y(point[key]).toFixed(1)]);
    if (!points.length) return [];
    const way = points.map(([px, py]) => `${px},${py}`).join(" ");
    const [endX, endY] = points[points.length - 1];
    const drawn = [svg("polyline", { points: way, class: `line ${kind.split(" ")[0]}` })];
    if (kind.includes("area")) drawn.unshift(svg("polygon", { points: `${points[0][0]},${ground} ${way} ${endX},${ground}`, class: "area" }));
    if (kind.includes("first")) drawn.push(svg("circle", { cx: endX, cy: endY, r: 3, class: "dot" }));
    return drawn;
  }

  /** The values where the pointer is. */
  cross(x, y, right) {
    const near = this.points.reduce((best, point) => (Math.abs(x(point.t) - this.at) < Math.abs(x(best.t) - this.at) ? point : best));
    const text = this.lines.map(({ key }) => near[key]).filter((value) => Number.isFinite(value)).map((value) => this.say(value)).reverse().join(" · ");
    const px = x(near.t);
    const end = px > right / 2;
    return [
      svg("line", { x1: px, x2: px, y1: TOP, y2: HEIGHT - BOTTOM, class: "cross" }),
      svg("text", { x: px + (end ? -6 : 6), y: TOP + 6, class: end ? "axis cross-text end" : "axis cross-text" }, text),
    ];
  }
}
