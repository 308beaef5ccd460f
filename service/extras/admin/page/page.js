// Draws GET /pool twice a second. Nodes are made once and changed in place. Data is only ever set as text, not as HTML.
"use strict";

const EVERY = 500; // milliseconds between two questions
const PATIENCE = 2000; // milliseconds for an answer
const ANNOUNCE_EVERY = 5000; // milliseconds between two texts for a screen reader
const CELLS = 128; // threads of a worker above which a bar is drawn
const ALL_CELLS = 2048; // of all workers together, likewise
const HOLDERS = 6; // shown: the panel is as high as these

// --- Words and numbers ---

const integer = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const count = (number) => (number == null ? "–" : integer.format(number));
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
const waits = (number) => `${count(number)} wait${number === 1 ? "s" : ""}`;
const sum = (items, of) => items.reduce((total, item) => total + of(item), 0);
const last = (values) => values?.at(-1) ?? null;

function duration(seconds) {
  if (seconds == null) return "–";
  const [size, unit] = seconds < 0.9995e-3 ? [1e-6, "µs"] : seconds < 0.9995 ? [1e-3, "ms"] : [1, "s"];
  const number = seconds / size;
  return `${number.toFixed(number >= 99.95 ? 0 : number >= 9.995 ? 1 : 2)} ${unit}`;
}

function span(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.floor(seconds))} s`;
  const [minutes, hours] = [Math.floor(seconds / 60), Math.floor(seconds / 3600)];
  if (hours < 10) return hours ? `${hours} h ${minutes % 60} min` : `${minutes} min`;
  return hours < 48 ? `${hours} h` : `${Math.floor(hours / 24)} days`;
}

function moment(epoch, now) {
  const date = new Date(epoch * 1000);
  const time = date.toLocaleTimeString("en-GB");
  return now - epoch < 43200 ? time : `${date.toLocaleDateString("en-CA")} ${time.slice(0, 5)}`;
}

// --- Nodes ---

const byId = (id) => document.getElementById(id);
const html = (name) => document.createElement(name);
const svg = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
const fromTemplate = (id) => byId(id).content.firstElementChild.cloneNode(true);

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function setClass(node, name) {
  if (node.getAttribute("class") !== name) node.setAttribute("class", name);
}

function attributes(node, values) {
  for (const [name, value] of Object.entries(values)) node.setAttribute(name, value);
}

// Have `parent` hold one node for each of `items`: nodes that exist are drawn again, and only missing ones are made.
function each(parent, items, make, draw) {
  while (parent.children.length > items.length) parent.lastElementChild.remove();
  while (parent.children.length < items.length) parent.append(make());
  items.forEach((item, index) => draw(parent.children[index], item, index));
}

function withParts(parent, ...names) {
  parent.append(...names.map(html));
  return parent;
}

// --- Is it full? ---

const SHAPES = {
  asking: "",
  room: "M14 2a12 12 0 1 0 0 24a12 12 0 1 0 0-24zm0 4a8 8 0 1 1 0 16a8 8 0 1 1 0-16z", // a ring
  full: "M14 2a12 12 0 1 0 0 24a12 12 0 1 0 0-24z", // a disc
  refusing: "M14 2a12 12 0 1 0 0 24a12 12 0 1 0 0-24zM7 12h14v4h-14z", // no entry
  down: "M14 2l13 23h-26zM12.5 10h3v7h-3zM12.5 19h3v3h-3z", // a warning
  lost: "M5 2l9 9l9-9l3 3l-9 9l9 9l-3 3l-9-9l-9 9l-3-3l9-9l-9-9z", // a cross
};
const WORDS = { room: "Has room", full: "Full", refusing: "Refusing", down: "Database down", lost: "No answer" };

function judge({ workers, history, database }) {
  if (database.state === "down") return ["down", `${database.trouble}`];
  const size = sum(workers, (worker) => worker.connections.size);
  const used = sum(workers, (worker) => worker.connections.used);
  const waiting = sum(workers, (worker) => worker.queue.waiting + worker.hashing.waiting);
  const refused = last(history.refused);
  const full = workers.every((worker) => worker.threads.busy >= worker.threads.size);
  const use = full ? `${count(used)} of ${plural(size, "connection")} in use`
    : `${plural(workers.length, "worker")}, ${plural(size, "connection")}: ${count(used)} in use`;
  const wait = waiting ? waits(waiting) : "nobody waits";
  if (refused) return ["refusing", `${use}, ${wait}, refusing ${count(refused)} a second`];
  return [full ? "full" : "room", `${use}, ${wait}`];
}

const announced = { state: "", at: -ANNOUNCE_EVERY };

function drawHeadline(state, sentence) {
  byId("headline").dataset.state = state;
  byId("shape").setAttribute("d", SHAPES[state]);
  setText(byId("word"), WORDS[state]);
  setText(byId("sentence"), sentence);
  setText(document.querySelector("title"), `${WORDS[state]} – pool`);
  if (state !== announced.state && performance.now() - announced.at >= ANNOUNCE_EVERY) {
    Object.assign(announced, { state, at: performance.now() });
    setText(byId("announcement"), `${WORDS[state]}: ${sentence}`);
  }
}

// --- Workers ---

function drawCells(slots, size, taken, open) {
  setClass(slots, `slots cells ${size <= 16 ? "large" : size <= 48 ? "medium" : "small"}`);
  each(slots, Array(size).fill(), () => html("i"), (cell, _, index) =>
    setClass(cell, index < taken ? "taken" : index < open ? "" : "shut"));
}

function drawBar(slots, size, taken) {
  setClass(slots, "slots bar");
  each(slots, [taken], () => html("i"), (bar) => {
    setClass(bar, "taken");
    bar.style.transform = `scaleX(${size ? Math.min(1, taken / size) : 0})`;
  });
}

function drawRow(row, draw, size, taken, { open = size, note = "" } = {}) {
  const [slots, number] = row.querySelectorAll("dd");
  draw(slots, size, taken, open);
  setClass(number, size && taken >= size ? "number full" : "number");
  setText(number.firstChild, note);
  setText(number.lastChild, `${count(taken)} / ${count(size)}`);
}

function drawWorker(card, worker, draw, now) {
  const { queue, threads, connections, hashing } = worker;
  const row = (name) => card.querySelector(`.${name}`);
  setText(row("pid"), `Worker ${worker.pid}`);
  setText(row("since"), `since ${moment(worker.since, now)}, ${span(now - worker.since)}`);
  drawRow(row("queue"), drawBar, queue.length, queue.waiting);
  drawRow(row("threads"), draw, threads.size, threads.busy);
  const shut = connections.size - connections.open;
  drawRow(row("connections"), draw, connections.size, connections.used,
    { open: connections.open, note: shut > 0 ? `${count(shut)} not open` : "" });
  drawRow(row("hashing"), hashing.size <= CELLS ? drawCells : drawBar, hashing.size, hashing.busy,
    { note: hashing.waiting ? waits(hashing.waiting) : "" });
}

function drawWorkers(workers, now) {
  const largest = Math.max(...workers.map((worker) => worker.threads.size));
  const cells = largest <= CELLS && sum(workers, (worker) => worker.threads.size) <= ALL_CELLS;
  const draw = cells ? drawCells : drawBar;
  each(byId("workers"), workers, () => fromTemplate("worker"), (card, worker) => drawWorker(card, worker, draw, now));
}

// --- Plots ---

const HEIGHT = 172;
const EDGE = { top: 26, right: 6, bottom: 22, left: 54 };
const SPAN = 120; // seconds

// A scale has ticks. `share` returns the height of a value, from 0 at the bottom to 1.
function linear(values) {
  const most = Math.max(4, ...values);
  const power = 10 ** Math.floor(Math.log10(most));
  const top = [1, 2, 4, 6, 8, 10].map((step) => step * power).find((step) => step >= most);
  return { ticks: [0, top / 2, top], share: (value) => value / top };
}

function logarithmic(values) {
  const known = values.filter((value) => value > 0);
  const low = Math.floor(Math.log10(Math.min(1e-3, ...known)) + 1e-9);
  const high = Math.ceil(Math.log10(Math.max(1e-1, ...known)) - 1e-9);
  const ticks = Array.from({ length: high - low + 1 }, (_, index) => 10 ** (low + index));
  return { ticks, share: (value) => (Math.log10(Math.max(value, ticks[0])) - low) / (high - low) };
}

const tickOfTime = (seconds) => duration(seconds).replace(/\.0+ /, " ");
const served = (history) => history.requests?.map(
  (number, index) => Math.max(0, number - history.refused[index] - history.failed[index]));

// A series is drawn as the area above the one before it; a `stacked` one is added to those before it.
const PLOTS = [
  { title: "Throughput", unit: "requests a second", scale: linear, show: count, tick: count, stacked: true,
    series: { served, refused: (history) => history.refused, failed: (history) => history.failed } },
  { title: "Latency", unit: "of a request", scale: logarithmic, show: duration, tick: tickOfTime,
    series: { p50: (history) => history.p50, p99: (history) => history.p99 } },
  { title: "Queued", unit: "requests that wait", scale: linear, show: count, tick: count,
    series: { waiting: (history) => history.queued } },
  { title: "Connection held", unit: "by a request", scale: logarithmic, show: duration, tick: tickOfTime,
    series: { p50: (history) => history.held_p50, p99: (history) => history.held_p99 } },
];

const stack = (series) => series.map(
  (_, upTo) => series[upTo].map((_, index) => sum(series.slice(0, upTo + 1), (values) => values[index])));

// The stretches without a gap, each a list of indices.
function stretches(values) {
  const found = [];
  values.forEach((value, index) => {
    if (value == null) return;
    if (index && values[index - 1] != null) found.at(-1).push(index);
    else found.push([index]);
  });
  return found;
}

// A line over each stretch; a single point is a dot. With `floor`, what is between the two is an area.
function paths(values, x, y, floor) {
  const point = (of) => (index) => `${x(index).toFixed(1)} ${of(index).toFixed(1)}`;
  const over = point((index) => y(values[index]));
  const line = stretches(values).map((stretch) => `M${stretch.map(over).join("L")}h.01`).join("");
  const area = floor && stretches(values).map(
    (stretch) => `M${[...stretch.map(over), ...stretch.toReversed().map(point(floor))].join("L")}z`).join("");
  return { line, area };
}

function drawGrid(figure, plot, scale, width, y) {
  each(figure.querySelector(".grid"), scale.ticks, () => {
    const tick = svg("g");
    tick.append(svg("line"), svg("text"));
    return tick;
  }, (tick, value, index) => {
    attributes(tick.firstChild, { x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) });
    attributes(tick.lastChild, { x: EDGE.left - 8, y: y(value) + 4 });
    setClass(tick, index ? "" : "floor");
    setText(tick.lastChild, plot.tick(value));
  });
  each(figure.querySelector(".ages"), ["2 min ago", "1 min ago", "now"], () => svg("text"), (text, words, index) => {
    attributes(text, { x: EDGE.left + (index / 2) * (width - EDGE.left - EDGE.right), y: HEIGHT - 4 });
    setText(text, words);
  });
}

function drawPlot(figure, plot, history, age, announce) {
  const names = Object.keys(plot.series);
  const series = Object.values(plot.series).map((of) => of(history) ?? []);
  const drawn = plot.stacked ? stack(series) : series;
  const chart = figure.querySelector("svg");
  const width = Math.max(160, chart.clientWidth);
  const scale = plot.scale(drawn.flat().filter((value) => value != null));
  const bottom = HEIGHT - EDGE.bottom;
  const y = (value) => bottom - scale.share(value) * (bottom - EDGE.top);
  const second = (width - EDGE.left - EDGE.right) / SPAN;
  const x = (index) => Math.max(EDGE.left,
    width - EDGE.right - (age + (series[0].length - 1 - index) * history.every) * second);
  attributes(chart, { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT });
  setText(figure.querySelector("h3"), plot.title);
  setText(figure.querySelector(".unit"), plot.unit);
  drawGrid(figure, plot, scale, width, y);
  // The highest first, so that the others lie before it.
  each(figure.querySelector(".layers"), names.toReversed(), () => {
    const layer = svg("g");
    layer.append(svg("path"), svg("path"));
    return layer;
  }, (layer, name, index) => {
    const number = names.length - 1 - index;
    const below = number ? (point) => y(drawn[number - 1][point]) : plot.scale === linear ? () => bottom : null;
    const { line, area } = paths(drawn[number], x, y, below);
    setClass(layer, name);
    attributes(layer.firstChild, { d: area ?? "", class: "area" });
    attributes(layer.lastChild, { d: line, class: "line" });
  });
  each(figure.querySelector(".legend"), names, () => withParts(html("li"), "span", "b"), (item, name, index) => {
    setClass(item, name);
    setText(item.firstChild, name);
    setText(item.lastChild, plot.show(last(series[index])));
  });
  if (announce) {
    const texts = names.map((name, index) => `${name} ${plot.show(last(series[index]))} now, `
      + `${plot.show(series[index].length ? Math.max(...series[index]) : null)} at most`);
    chart.setAttribute("aria-label", `${plot.title}, ${plot.unit}: ${texts.join("; ")}`);
  }
}

let announcedPlotsAt = -ANNOUNCE_EVERY;

function drawPlots(history, now) {
  const age = Math.min(SPAN, Math.max(0, now - (history.until ?? now)));
  const announce = performance.now() - announcedPlotsAt >= ANNOUNCE_EVERY;
  if (announce) announcedPlotsAt = performance.now();
  each(byId("plots"), PLOTS, () => fromTemplate("plot"),
    (figure, plot) => drawPlot(figure, plot, history, age, announce));
}

// --- Holders, the database, totals ---

function drawHolders(holders) {
  const table = byId("holders").querySelector("table");
  const more = holders.length - HOLDERS;
  each(table.tBodies[0], holders.slice(0, HOLDERS), () => withParts(html("tr"), "td", "td", "td"), (row, holder) => {
    setText(row.cells[0], holder.route || "the service itself");
    setText(row.cells[1], `${holder.worker}`);
    setText(row.cells[2], duration(holder.seconds));
  });
  setText(byId("more-holders"),
    !holders.length ? "Nobody holds a connection." : more > 0 ? `and ${count(more)} more` : "");
}

const BUDGET = { ours: "ours", others: "others’", reserved: "reserved", free: "free" };

function drawDatabase(database, budget, now) {
  const up = database.state === "up";
  byId("database-state").dataset.state = database.state;
  setText(byId("database-state"), database.state);
  setText(byId("database-version"), database.version ? `PostgreSQL ${database.version}` : "–");
  const since = up && database.up_since;
  setText(byId("database-since"), since ? `${moment(since, now)}, ${span(now - since)}` : "–");
  setText(byId("database-latency"), duration(up ? database.latency : null));
  setText(byId("trouble"), database.trouble ?? "");
  setText(byId("budget-limit"), budget ? `limit ${count(budget.limit)}` : "not known now");
  const parts = Object.entries(BUDGET).map(([name, words]) => [name, words, budget?.[name]]);
  each(byId("budget-bar"), parts, () => html("i"), (part, [name, , number]) => {
    setClass(part, name);
    part.style.flexGrow = number ?? 0;
  });
  each(byId("budget-legend"), parts, () => withParts(html("li"), "span", "b"), (item, [name, words, number]) => {
    setClass(item, name);
    setText(item.firstChild, words);
    setText(item.lastChild, count(number));
  });
}

const TOTALS = {
  requests: "requests", refused: "refused", abandoned: "left while they waited", leaks: "leaks",
  cut: "cut at a deadline", retried: "reads retried", reconnects: "reconnects", restarts: "worker restarts",
};

function drawNumbers(list, numbers) {
  each(list, numbers, () => withParts(html("div"), "dt", "dd"), (item, [words, number]) => {
    setText(item.firstChild, words);
    setText(item.lastChild, count(number));
  });
}

function drawTotals(totals) {
  drawNumbers(byId("totals"), Object.entries(TOTALS).map(([name, words]) => [words, totals[name]]));
  const problems = Object.entries(totals.problems).sort(([, one], [, other]) => other - one);
  drawNumbers(byId("problems"), problems);
  byId("problems").hidden = !problems.length;
  setText(byId("no-problems"), problems.length ? "" : "None.");
}

// --- Asking ---

function draw(pool) {
  document.body.classList.remove("stale");
  drawHeadline(...judge(pool));
  setText(byId("clock"), moment(pool.at, pool.at));
  drawWorkers(pool.workers, pool.at);
  drawPlots(pool.history, pool.at);
  drawHolders(pool.holders);
  drawDatabase(pool.database, pool.budget, pool.at);
  drawTotals(pool.totals);
}

function drawLost(trouble) {
  document.body.classList.add("stale");
  const age = shown ? `; the picture is ${span((performance.now() - drawnAt) / 1000)} old` : "";
  drawHeadline("lost", `${trouble}${age}`);
}

async function ask() {
  const answer = await fetch(location.pathname, {
    headers: { Accept: "application/json" }, cache: "no-store", signal: AbortSignal.timeout(PATIENCE),
  }).catch(() => {
    throw new Error("the service cannot be reached");
  });
  if (answer.ok) return answer.json();
  const problem = await answer.json().catch(() => ({}));
  throw new Error(`the service answers ${answer.status}${problem.title ? `, ${problem.title}` : ""}`);
}

let shown = null;
let drawnAt = 0;
let timer = 0;

async function poll() {
  const began = performance.now();
  const [pool, trouble] = await ask().then((json) => [json, ""], (error) => [null, error.message]);
  clearTimeout(timer); // of a poll that was under way when the page was hidden and shown again
  if (!document.hidden) timer = setTimeout(poll, Math.max(50, EVERY - (performance.now() - began)));
  if (pool) {
    [shown, drawnAt] = [pool, performance.now()];
    draw(pool);
  } else {
    drawLost(trouble);
  }
}

document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) poll();
});
window.addEventListener("resize", () => shown && drawPlots(shown.history, shown.at));
poll();
