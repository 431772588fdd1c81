// The page of a broker: asks for what there is to show every now and then, and draws it.
//
// What peers say of themselves is hostile until shown otherwise: it goes in by textContent alone.
"use strict";

const REPORT_EVERY_MS = 2000;
const HISTORY_EVERY_MS = 10000;
const PATIENCE_MS = 8000;
const SVG = "http://www.w3.org/2000/svg";
const NOTHING = "–";

const place = (id) => document.getElementById(id);
const latest = { report: null, history: null };

// How numbers are written.

function number(value, digits = 0) {
  if (value === null || value === undefined) return NOTHING;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

function rate(value) {
  return number(value, value !== null && value < 10 ? 2 : value < 100 ? 1 : 0);
}

function duration(seconds) {
  if (seconds === null || seconds === undefined) return NOTHING;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

function ago(seconds) {
  return seconds < 60 ? `${Math.max(0, Math.floor(seconds))} s ago` : `${Math.floor(seconds / 60)} min ago`;
}

// Elements are kept and only their text is changed, so that a selection or a reader's place stays.

function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function child(parent, index, tag) {
  return parent.children[index] ?? parent.appendChild(document.createElement(tag));
}

function keep(parent, count) {
  while (parent.children.length > count) parent.lastElementChild.remove();
}

// Columns: {title, kind: its class in page.css, head: true for a row's header, of: row => text, mark: (cell, row)}.
function table(id, columns, rows, empty, note = "") {
  const box = place(id);
  const title = `${id}-title`;
  let body = box.querySelector("tbody");
  if (!body) {
    const made = box.appendChild(document.createElement("table"));
    made.setAttribute("aria-labelledby", title);
    const head = made.createTHead().insertRow();
    for (const column of columns) {
      const cell = head.appendChild(document.createElement("th"));
      cell.scope = "col";
      cell.className = column.kind;
      cell.textContent = column.title;
    }
    body = made.createTBody();
    box.appendChild(document.createElement("p")).className = "note";
    // What scrolls sideways on a phone can be reached by keyboard.
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-labelledby", title);
  }
  rows.forEach((row, at) => {
    const line = child(body, at, "tr");
    columns.forEach((column, index) => {
      const cell = child(line, index, column.head ? "th" : "td");
      if (column.head) cell.scope = "row";
      cell.className = column.kind;
      write(cell, column.of(row));
      if (column.mark) column.mark(cell, row, rows[at - 1]);
    });
  });
  keep(body, rows.length);
  box.firstElementChild.hidden = rows.length === 0;
  write(box.lastElementChild, rows.length === 0 ? empty : note);
}

function left_out(count, what) {
  return count ? `and ${number(count)} more ${what}; genpool status --json has all` : "";
}

// What is shown of a report.

function show_totals(totals) {
  const tiles = [
    ["rows/s", rate(totals.rows_per_s), ""],
    ["tokens/s", rate(totals.tokens_per_s), ""],
    ["running", number(totals.running), `of ${number(totals.capacity)} places`],
    ["queued", number(totals.queued), ""],
    ["workers ready", number(totals.ready), `of ${number(totals.workers)}`],
    ["clients", number(totals.clients), totals.clients_away ? `${number(totals.clients_away)} away` : ""],
    ["done", number(totals.done), ""],
    ["failed", number(totals.failed), totals.expired ? `and ${number(totals.expired)} expired` : ""],
  ];
  const list = place("totals");
  tiles.forEach(([title, value, beside], at) => {
    const tile = child(list, at, "div");
    write(child(tile, 0, "dt"), title);
    const shown = child(tile, 1, "dd");
    write(child(shown, 0, "span"), value);
    write(child(shown, 1, "small"), beside ? ` ${beside}` : "");
    shown.className = title === "failed" && totals.failed ? "bad" : "";
  });
}

const swatch = (cell, row) => {
  const color = color_of(row.name);
  if (color) cell.className += ` swatch ${color}`;
  if (cell.firstElementChild === null) {
    const text = document.createElement("span");
    text.textContent = cell.textContent;
    cell.replaceChildren(text);
  }
};

const LLMS = [
  { title: "LLM", kind: "name", head: true, of: (llm) => llm.name, mark: swatch },
  { title: "model", kind: "name model", of: (llm) => llm.model || NOTHING },
  { title: "workers ready", kind: "number", of: (llm) => `${llm.ready} of ${llm.workers}` },
  { title: "queued", kind: "number", of: (llm) => number(llm.queued) },
  { title: "oldest", kind: "number", of: (llm) => duration(llm.oldest_s) },
  { title: "running", kind: "number", of: (llm) => `${number(llm.running)} of ${number(llm.capacity)}` },
  { title: "rows/s", kind: "number", of: (llm) => rate(llm.rows_per_s) },
  { title: "tokens/s", kind: "number", of: (llm) => rate(llm.tokens_per_s) },
  { title: "done", kind: "number", of: (llm) => number(llm.done) },
  { title: "failed", kind: "number", of: (llm) => number(llm.failed), mark: (cell, llm) => cell.classList.toggle("bad", llm.failed > 0) },
  { title: "expired", kind: "number", of: (llm) => number(llm.expired) },
  { title: "requeued", kind: "number", of: (llm) => number(llm.requeued) },
];

const WORKERS = [
  { title: "host", kind: "name", head: true, of: (one) => one.host, mark: (cell, one, before) => cell.classList.toggle("same", before?.host === one.host) },
  { title: "process", kind: "time", of: (one) => String(one.pid) },
  { title: "LLM", kind: "name", of: (one) => one.llm },
  { title: "state", kind: "state", of: (one) => one.state, mark: (cell, one) => { cell.dataset.worker = one.state; } },
  { title: "running", kind: "number", of: (one) => number(one.running) },
  { title: "rows/s", kind: "number", of: (one) => rate(one.rows_per_s) },
  { title: "done", kind: "number", of: (one) => number(one.done) },
  { title: "failed", kind: "number", of: (one) => number(one.failed), mark: (cell, one) => cell.classList.toggle("bad", one.failed > 0) },
  { title: "reason", kind: "text", of: (one) => one.reason },
];

const SLOWEST = [
  { title: "running for", kind: "time", of: (one) => duration(one.running_s) },
  { title: "LLM", kind: "name", of: (one) => one.llm },
  { title: "worker", kind: "name", of: (one) => `${one.host}:${one.pid}` },
];

const FAILURES = [
  { title: "last", kind: "time", of: (one) => ago(latest.report.uptime_s - one.at) },
  { title: "LLM", kind: "name", of: (one) => one.llm },
  { title: "failed", kind: "number", of: (one) => number(one.failed) },
  { title: "expired", kind: "number", of: (one) => number(one.expired) },
  { title: "run again", kind: "number", of: (one) => number(one.requeued) },
];

const TROUBLE = [
  { title: "state", kind: "trouble", of: (one) => (one.state ? one.state : `lost ${ago(one.ago_s)}`), mark: (cell, one) => { cell.dataset.worker = one.state || "lost"; } },
  { title: "worker", kind: "name", of: (one) => `${one.host}:${one.pid}` },
  { title: "LLM", kind: "name", of: (one) => one.llm },
  { title: "rows it had", kind: "number", of: (one) => number(one.rows ?? one.running) },
  { title: "why", kind: "text", of: (one) => one.why ?? one.reason },
];

const MOST_FAILURES = 20;

function show() {
  const { report, history } = latest;
  if (!report) return;
  write(place("uptime"), `up for ${duration(Math.floor(report.uptime_s))}, keeps ${number(report.totals.held)} rows`);
  show_totals(report.totals);
  table("llms", LLMS, report.llms, "No LLM is known yet.", left_out(report.left_out.llms, "LLMs"));
  table("workers", WORKERS, report.workers, "No worker is connected.", left_out(report.left_out.workers, "workers"));
  table("slowest", SLOWEST, report.slowest, "No row is running.");
  const trouble = [...report.workers.filter((one) => one.state === "unwell"), ...report.lost];
  table("lost", TROUBLE, trouble, "No worker was lost or is unwell.", left_out(report.left_out.lost, "lost workers"));
  if (history) {
    table("failures", FAILURES, history.failures.slice(0, MOST_FAILURES), "No row has failed or expired.");
  }
}

// Plots.

function color_of(name) {
  const at = (latest.history?.series ?? []).findIndex((one) => one.name === name);
  return at < 0 ? "" : name === null ? "series-8" : `series-${at}`;
}

function shape(tag, attributes, text) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// A round number of at least `most`, and the step between the lines of the grid.
function scale(most) {
  const rough = Math.max(most, 1e-9) / 4;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((one) => one >= rough * 0.999);
  return { top: step * Math.max(1, Math.ceil(most / step - 1e-9)), step };
}

class Plot {
  constructor(id, key, write_value, unit, least) {
    Object.assign(this, { key, write_value, unit, least, cursor: null, figure: place(id) });
    this.svg = this.figure.appendChild(shape("svg", { role: "img" }));
    this.legend = this.figure.appendChild(document.createElement("figcaption"));
    this.when = child(this.legend, 0, "span");
    this.when.className = "when";
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => { this.cursor = null; this.draw(); });
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  point(event) {
    const { times } = latest.history ?? { times: [] };
    if (!times.length || !this.x_of) return;
    const x = event.clientX - this.svg.getBoundingClientRect().left;
    const distances = times.map((time) => Math.abs(this.x_of(time) - x));
    this.cursor = times[distances.indexOf(Math.min(...distances))];
    this.draw();
  }

  draw() {
    if (!latest.report || !latest.history) return;
    const { times, series } = latest.history;
    const now = Math.max(latest.report.uptime_s, times.at(-1) ?? 0);
    const box = { left: 48, right: 12, top: 18, bottom: 22 };
    const width = Math.max(200, this.svg.clientWidth);
    const height = Math.max(120, this.svg.clientHeight);
    const span = Math.min(3600, Math.max(300, now));
    const values = series.flatMap((one) => one[this.key]).filter((value) => value !== null);
    const { top, step } = scale(Math.max(this.least, ...values));
    const x_of = (time) => width - box.right - ((now - time) / span) * (width - box.left - box.right);
    const y_of = (value) => height - box.bottom - (value / top) * (height - box.top - box.bottom);
    this.x_of = x_of;

    const shapes = [];
    for (let value = 0; value <= top + step / 2; value += step) {
      const y = Math.round(y_of(value)) + 0.5;
      shapes.push(shape("line", { class: "grid", x1: box.left, x2: width - box.right, y1: y, y2: y }));
      const label = number(value, step < 0.1 ? 3 : step < 1 ? 2 : 0);
      shapes.push(shape("text", { x: box.left - 6, y: y + 4, "text-anchor": "end" }, label));
    }
    shapes.push(shape("text", { x: box.left, y: 10 }, this.unit));
    const minutes = span / 60;
    const every = [1, 2, 5, 10, 15].find((one) => minutes / one <= (width < 420 ? 4 : 6.5)) ?? 20;
    for (let minute = 0; minute <= minutes; minute += every) {
      const x = x_of(now - minute * 60);
      const anchor = minute === 0 ? "end" : "middle";
      const label = minute === 0 ? "now" : `−${minute} min`;
      if (x > box.left + 16) shapes.push(shape("text", { x, y: height - 5, "text-anchor": anchor }, label));
    }
    series.forEach((one) => {
      const path = curve(times, one[this.key], now - span, x_of, y_of);
      if (path) shapes.push(shape("path", { class: `curve ${color_of(one.name)}`, d: path }));
      const last = one[this.key].at(-1);
      if (last !== null && last !== undefined) {
        shapes.push(shape("circle", { class: color_of(one.name), cx: x_of(times.at(-1)), cy: y_of(last), r: 2.5, fill: "currentColor" }));
      }
    });
    if (this.cursor !== null && this.cursor >= now - span) {
      const x = x_of(this.cursor);
      shapes.push(shape("line", { class: "cursor", x1: x, x2: x, y1: box.top, y2: height - box.bottom }));
    }
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren(...shapes);
    this.show_legend(times, series, now);
  }

  show_legend(times, series, now) {
    const at = this.cursor === null ? times.length - 1 : times.indexOf(this.cursor);
    const said = series.map((one) => `${one.name ?? "others"}: ${this.write_value(one[this.key][at] ?? null)}`);
    series.forEach((one, index) => {
      const entry = child(this.legend, index + 1, "span");
      entry.className = `swatch ${color_of(one.name)}`;
      write(child(entry, 0, "span"), said[index]);
    });
    keep(this.legend, series.length + 1);
    write(this.when, !times.length ? "nothing is known yet" : series.length ? ago(now - times[at]) : "no LLM yet");
    this.svg.setAttribute("aria-label", `${this.unit} over the last hour; now ${said.join(", ") || "nothing"}`);
  }
}

function curve(times, values, since, x_of, y_of) {
  let path = "";
  let is_down = false;
  values.forEach((value, at) => {
    // Where the broker stood still, or an LLM was unknown, there is a gap.
    const is_gap = value === null || times[at] < since || (at > 0 && times[at] - times[at - 1] > 35);
    if (value === null || times[at] < since) {
      is_down = false;
      return;
    }
    path += `${is_down && !is_gap ? "L" : "M"}${x_of(times[at]).toFixed(1)} ${y_of(value).toFixed(1)}`;
    if (!is_down || is_gap) path += "h0.1"; // a point alone would not be seen
    is_down = true;
  });
  return path;
}

const plots = [
  new Plot("throughput", "rows_per_s", rate, "rows/s", 1),
  new Plot("queue", "queued", number, "rows", 4),
];

// Asking.

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
  if (!answer.ok) throw new Error((await answer.text()).trim().slice(0, 300));
  return answer.json();
}

function tell(state, text) {
  const connection = place("connection");
  connection.dataset.state = state;
  write(connection, text);
  place("main").classList.toggle("stale", state === "lost");
}

let next_history = 0;
let timer = null;
let is_asking = false;

async function look() {
  if (is_asking) return;
  is_asking = true;
  try {
    latest.report = await ask("api/report");
    if (performance.now() >= next_history || latest.report.uptime_s < (latest.history?.times.at(-1) ?? 0)) {
      latest.history = await ask("api/history");
      next_history = performance.now() + (latest.history.times.length < 2 ? REPORT_EVERY_MS : HISTORY_EVERY_MS);
    }
    if (latest.report.unready) tell("unready", `The broker takes nobody now: ${latest.report.unready}`);
    else tell("live", "Live");
    show();
    plots.forEach((plot) => plot.draw());
  } catch (error) {
    const why = error instanceof TypeError ? "it cannot be reached" : error.name === "TimeoutError" ? "it takes too long" : error.message;
    tell("lost", `The broker does not answer: ${why}. What is shown is old.`);
  } finally {
    is_asking = false;
  }
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(look, REPORT_EVERY_MS);
}

// Nobody sees a hidden page, so nobody is asked.
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) look();
});

look();
