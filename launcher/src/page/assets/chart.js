// Curves as SVG: drawn for the width there is, read with the pointer or the arrow keys.

const SVG = "http://www.w3.org/2000/svg";
const PAD = { left: 52, right: 12, top: 10, bottom: 24 };
const DASHES = ["", "7 4", "2 4", "9 3 2 3", "", "7 4"];

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** Round values that divide a range into a few parts. */
function ticks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) {
    found.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  }
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
    for (const factor of high / low < 30 ? [1, 2, 5] : [1]) {
      const at = factor * 10 ** power;
      if (at >= low * 0.999 && at <= high * 1.001) found.push(at);
    }
  }
  return found;
}

class Chart {
  constructor(title, { small = false, log = false, hint = "" } = {}) {
    this.small = small;
    this.hasLog = log;
    this.series = [];
    this.log = false;
    this.at = null;
    this.toggle = make("button", { type: "button", class: "quiet", "aria-pressed": "false" }, "Log scale");
    this.toggle.addEventListener("click", () => {
      this.log = !this.log;
      this.toggle.setAttribute("aria-pressed", String(this.log));
      this.draw();
    });
    this.keys = make("ul", { class: "keys" });
    this.picture = svg("svg", { role: "img", tabindex: "0" });
    this.reading = make("p", { class: "reading", role: "status" });
    this.element = make("figure", { class: "chart" },
      make("div", { class: "line" }, make("h3", {}, title), this.toggle),
      this.keys, this.picture, this.reading);
    if (hint) this.element.append(make("p", { class: "hint" }, hint));
    this.title = title;
    this.listen();
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  listen() {
    this.picture.addEventListener("pointermove", (event) => {
      const box = this.picture.getBoundingClientRect();
      if (this.scale && box.width) this.read(this.scale.step((event.clientX - box.left) * this.width / box.width));
    });
    this.picture.addEventListener("pointerleave", () => this.read(null));
    this.picture.addEventListener("blur", () => this.read(null));
    this.picture.addEventListener("keydown", (event) => {
      const steps = this.longest();
      if (!steps.length) return;
      let index = this.at === null ? steps.length - 1 : steps.findIndex((step) => step >= this.at);
      if (index < 0) index = steps.length - 1;
      const to = { ArrowLeft: index - 1, ArrowRight: index + 1, Home: 0, End: steps.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.read(steps[Math.min(Math.max(to, 0), steps.length - 1)]);
    });
  }

  longest() {
    return this.series.map((one) => one.steps).reduce((a, b) => (b.length > a.length ? b : a), []);
  }

  /** Takes in series of {name, steps, values, low, high, last, missing}. */
  show(series) {
    const key = JSON.stringify(series.map((one) => [one.name, one.steps.length, one.steps.at(-1), one.values.at(-1), one.missing]));
    if (key === this.key) return;
    this.key = key;
    this.series = series;
    this.keys.replaceChildren(...series.map((one, index) => {
      const mark = svg("svg", { class: "swatch", viewBox: "0 0 18 10", "aria-hidden": "true" },
        svg("line", { x1: 1, y1: 5, x2: 17, y2: 5, class: `trace c${index % 6}`, "stroke-dasharray": DASHES[index % 6] }));
      const lost = one.missing ? ` (${count(one.missing)} not a number)` : "";
      return make("li", {}, mark, `${one.name} `, make("b", {}, number(one.last)), lost);
    }));
    this.picture.setAttribute("aria-label", `${this.title}: ${series.map((one) => `${one.name} ${number(one.last)}`).join(", ")}. Arrow keys read single steps.`);
    this.draw();
  }

  draw() {
    const width = Math.max(Math.round(this.element.clientWidth), 200);
    const height = this.small ? 130 : Math.min(Math.max(Math.round(width * 0.42), 180), 250);
    Object.assign(this, { width, height });
    const values = this.series.flatMap((one) => [...one.values, ...one.low, ...one.high]);
    const steps = this.series.flatMap((one) => one.steps);
    if (!values.length) return;
    const positive = values.every((value) => value > 0);
    this.toggle.hidden = !this.hasLog || !positive;
    const log = this.log && positive;
    const scale = Chart.scale(values, steps, width, height, log);
    this.scale = scale;
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.picture.replaceChildren(...this.frame(scale, log), ...this.series.flatMap((one, index) => this.trace(one, index, scale)));
    this.cursor = svg("line", { class: "cursor", y1: PAD.top, y2: height - PAD.bottom, visibility: "hidden" });
    this.picture.append(this.cursor);
    this.read(this.at);
  }

  static scale(values, steps, width, height, log) {
    const to = log ? Math.log10 : (value) => value;
    let low = values.reduce((a, b) => Math.min(a, b));
    let high = values.reduce((a, b) => Math.max(a, b));
    if (low === high) { low -= Math.abs(low) * 0.1 || 1; high += Math.abs(high) * 0.1 || 1; }
    if (log && low <= 0) low = high / 10;
    const first = Math.min(0, ...steps.slice(0, 1));
    const last = Math.max(steps.reduce((a, b) => Math.max(a, b)), first + 1);
    const wide = width - PAD.left - PAD.right;
    const tall = height - PAD.top - PAD.bottom;
    return {
      low, high, first, last,
      x: (step) => PAD.left + wide * (step - first) / (last - first),
      y: (value) => PAD.top + tall * (1 - (to(value) - to(low)) / (to(high) - to(low))),
      step: (x) => first + (last - first) * (x - PAD.left) / wide,
    };
  }

  frame(scale, log) {
    const parts = [];
    const rows = log ? logTicks(scale.low, scale.high) : ticks(scale.low, scale.high, this.small ? 3 : 5);
    for (const value of rows) {
      const y = scale.y(value);
      parts.push(svg("line", { class: "grid", x1: PAD.left, x2: this.width - PAD.right, y1: y, y2: y }));
      parts.push(svg("text", { class: "tick", x: PAD.left - 8, y: y + 4, "text-anchor": "end" }, number(value)));
    }
    const columns = ticks(scale.first, scale.last, this.width > 420 ? 6 : 4).filter(Number.isInteger);
    for (const step of columns) {
      const x = scale.x(step);
      const anchor = x > this.width - 30 ? "end" : "middle";
      parts.push(svg("text", { class: "tick", x: Math.min(x, this.width), y: this.height - 6, "text-anchor": anchor }, count(step)));
    }
    return parts;
  }

  trace(one, index, scale) {
    const at = (values) => one.steps.map((step, i) => `${scale.x(step).toFixed(1)},${scale.y(values[i]).toFixed(1)}`);
    const colour = `c${index % 6}`;
    const parts = [];
    if (one.low.length) {
      const band = [...at(one.high), ...at(one.low).reverse()].join(" ");
      parts.push(svg("polygon", { class: `band ${colour}`, points: band }));
    }
    parts.push(svg("polyline", { class: `trace ${colour}`, points: at(one.values).join(" "), "stroke-dasharray": DASHES[index % 6] }));
    if (one.steps.length <= 30) {
      parts.push(...one.steps.map((step, i) => svg("circle", { class: colour, cx: scale.x(step), cy: scale.y(one.values[i]), r: 2.5 })));
    }
    return parts;
  }

  /** Reads the values nearest to a step, or stops reading. */
  read(step) {
    this.at = step;
    if (!this.cursor) return;
    this.cursor.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step === null) { say(this.reading, ""); return; }
    const inside = Math.min(Math.max(step, this.scale.first), this.scale.last);
    this.cursor.setAttribute("x1", this.scale.x(inside));
    this.cursor.setAttribute("x2", this.scale.x(inside));
    const nearest = (one) => one.steps.reduce((best, at, i) => (Math.abs(at - inside) < Math.abs(one.steps[best] - inside) ? i : best), 0);
    const texts = this.series.filter((one) => one.steps.length)
      .map((one) => { const i = nearest(one); return `${one.name} ${number(one.values[i])} at step ${count(one.steps[i])}`; });
    say(this.reading, texts.join(" · "));
  }
}
