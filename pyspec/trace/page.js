// SPDX-License-Identifier: Apache-2.0
// Draws the trace. Text from models and prompts only ever becomes text nodes and titles, never markup.
"use strict";

const trace = JSON.parse(document.getElementById("trace").textContent);
const steps = trace.steps;
const $ = (id) => document.getElementById(id);
const root = document.documentElement;
let current = 0;

function element(tag, name, ...content) {
  const node = document.createElement(tag);
  node.className = name;
  node.append(...content);
  return node;
}

function shape(tag, attributes, ...content) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...content);
  return node;
}

const digits = (value, count) => (value === null || value === undefined ? "–" : value.toFixed(count));
const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(value < 0.0995 ? 1 : 0) + " %");
const probability = (value) => (value >= 0.01 ? value.toFixed(2) : value >= 0.001 ? value.toFixed(3) : value.toExponential(0));
const milliseconds = (seconds) => digits(seconds === null ? null : 1000 * seconds, 2) + " ms";

// Characters that are not seen, or would turn the direction of what follows, are spelled out.
const spelled = (text) => text.replace(/[\p{Zl}\p{Zp}]|(?![\n\t])\p{C}/gu, (c) => "⟨" + c.codePointAt(0).toString(16) + "⟩");

// A token as one short line, with blanks and line ends made visible.
function visible(text, longest) {
  const line = Array.from(text).map((c) => {
    return { " ": "␣", "\n": "↵", "\t": "⇥" }[c] || spelled(c);
  });
  return line.length > longest ? line.slice(0, longest - 1).join("") + "…" : line.join("");
}

const tokenText = (index) => trace.tokens[index][1] || "⟨" + trace.tokens[index][0] + "⟩";
const tokenTitle = (index) => JSON.stringify(trace.tokens[index][1]) + "  id " + trace.tokens[index][0];

// ---- head and totals

function showHead() {
  for (const [name, value] of Object.entries(trace.about)) {
    $("about").append(element("div", "", element("dt", "", name), element("dd", "", value)));
  }
  const totals = trace.totals, drafts = Object.values(totals.drafts);
  const sum = (name) => drafts.reduce((value, draft) => value + draft[name], 0);
  const seconds = Object.values(totals.seconds).reduce((a, b) => a + b, 0);
  const ratio = totals.ratio_to_plain;
  const tiles = [
    [totals.emitted, "tokens in " + totals.steps + " steps"],
    [digits(totals.tokens_per_step, 2), "tokens a step"],
    [ratio === null ? "–" : digits(ratio, 2) + "x", "speed against plain (estimate)"],
    [sum("accepted") + " / " + sum("verified"), "draft tokens accepted / verified"],
    [sum("drafted"), "draft tokens proposed"],
    [digits(totals.steps ? (1000 * seconds) / totals.steps : null, 2) + " ms", "a step"],
  ];
  for (const [value, label] of tiles) $("tiles").append(element("div", "tile", element("b", "", String(value)), element("span", "", label)));
  $("prompt").lastElementChild.textContent = spelled(trace.prompt);
  if (trace.dropped) $("tiles").append(element("div", "tile", element("b", "", String(trace.dropped)), element("span", "", "later steps not kept")));
}

function chart(title, rows) {
  const table = element("table", "");
  for (const [label, share, text, kind] of rows) {
    const bar = shape("svg", { viewBox: "0 0 100 12", preserveAspectRatio: "none" }, shape("rect", { width: 100, height: 12 }));
    bar.append(shape("rect", { width: 100 * Math.min(1, share || 0), height: 12, class: kind }));
    table.append(element("tr", "", element("td", kind === "ok" ? "short" : "", label), element("td", "bar", bar), element("td", "n", text)));
  }
  $("charts").append(element("div", "card", element("h2", "", title), table));
}

const LONGEST_CHART = 10;

function showCharts() {
  const totals = trace.totals;
  const rate = (label, tried, accepted) =>
    [label, tried ? accepted / tried : 0, percent(tried ? accepted / tried : null) + "  (" + accepted + "/" + tried + ")", "ok"];
  const rates = (cells, name) => {
    const rows = cells.slice(0, LONGEST_CHART).map(([tried, accepted], i) => rate(name + " " + (i + 1), tried, accepted));
    const rest = cells.slice(LONGEST_CHART);
    const sum = (which) => rest.reduce((value, cell) => value + cell[which], 0);
    return rest.length ? [...rows, rate(name + " " + (LONGEST_CHART + 1) + "+", sum(0), sum(1))] : rows;
  };
  for (const [name, draft] of Object.entries(totals.drafts)) {
    if (!draft.by_depth.length) continue;
    chart("Acceptance by depth: " + name, rates(draft.by_depth, "depth"));
    chart("Acceptance by rank: " + name, rates(draft.by_rank, "child"));
  }
  const seconds = Object.entries(totals.seconds), all = seconds.reduce((a, [, b]) => a + b, 0);
  chart("Time by phase", seconds.map(([name, value]) =>
    [name, all ? value / all : 0, percent(all ? value / all : null) + "  " + milliseconds(totals.steps ? value / totals.steps : null) + " a step", "extra"]));
  const counts = (title, counted) => {
    const rows = Object.entries(counted).sort((a, b) => b[1] - a[1]);
    if (rows.length) chart(title, rows.map(([name, count]) => [name || "–", count / totals.steps, String(count), "extra"]));
  };
  counts("Why", totals.reasons);
  counts("Refused proposals", totals.failures);
}

// ---- the strip of all steps

function showStrip() {
  const canvas = $("strip"), scale = window.devicePixelRatio || 1, width = canvas.clientWidth, height = 72;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d"), colours = getComputedStyle(root), colour = (name) => colours.getPropertyValue("--" + name);
  pen.scale(scale, scale);
  if (!steps.length) return;
  const step = width / steps.length, bar = Math.max(1, Math.min(step - (step > 4 ? 1 : 0), 24));
  const most = Math.max(...steps.map((s) => Math.max(s.tokens.length, s.emitted.length)), 2);
  const level = (count) => (height - 6) * (count / most);
  steps.forEach((s, i) => {
    const x = i * step, kept = Math.max(0, Math.min(s.path.length - 1, s.emitted.length));
    pen.fillStyle = colour("seen");
    pen.fillRect(x, height - level(s.tokens.length), bar, level(s.tokens.length));
    pen.fillStyle = colour("extra");
    pen.fillRect(x, height - level(s.emitted.length), bar, level(s.emitted.length));
    pen.fillStyle = colour("ok");
    pen.fillRect(x, height - level(kept), bar, level(kept));
  });
  pen.fillStyle = colour("mark");
  pen.fillRect(current * step, 0, Math.max(2, bar), 4);
  pen.fillRect(current * step + bar / 2 - 0.5, 0, 1, height);
}

// ---- the tree of a step

// Places: column by depth; rows by leaves, the accepted child first so that the accepted path is straight.
function layOut(s) {
  const children = s.tokens.map(() => []), onPath = new Set(s.path), depth = s.tokens.map(() => 0), row = s.tokens.map(() => 0);
  for (let i = 1; i < s.tokens.length; i++) {
    children[s.parents[i]].push(i);
    depth[i] = depth[s.parents[i]] + 1;
  }
  let rows = 0;
  const stack = [0];
  while (stack.length) {
    const node = stack.pop();
    row[node] = rows;
    const ordered = [...children[node]].sort((a, b) => onPath.has(b) - onPath.has(a) || a - b);
    // The target's own token takes a row of its own below an accepted path that ends at an inner node.
    if (!ordered.length) rows += 1;
    for (const child of ordered.reverse()) stack.push(child);
  }
  return { children, depth, row, rows, onPath };
}

const COLUMN = 150, ROW = 46, WIDE = 122, HIGH = 36;

function box(x, y, kind, first, second, title) {
  const group = shape("g", { class: kind, transform: "translate(" + x + "," + y + ")" });
  group.append(shape("title", {}, title), shape("rect", { width: WIDE, height: HIGH, rx: 6 }));
  group.append(shape("text", { x: 8, y: 15 }, first), shape("text", { x: 8, y: 29, class: "small" }, second));
  return group;
}

function edge(from, to, kind) {
  const x = from[0] + WIDE, y = from[1] + HIGH / 2, z = to[0], w = to[1] + HIGH / 2, half = (x + z) / 2;
  if (z < x) {  // a chain goes on in the next row
    const between = y + (HIGH + ROW) / 4;
    return shape("path", { d: ["M", x, y, "h 8 V", between, "H", z - 5, "V", w, "H", z].join(" "), class: "edge " + kind });
  }
  return shape("path", { d: ["M", x, y, "C", half, y, half, w, z, w].join(" "), class: "edge " + kind });
}

// What the target thinks of a node's token: known for what it picked, and for its likeliest ones if they were asked for.
function targetSays(s, place) {
  const known = new Map();
  s.path.forEach((node, i) => {
    const top = new Map((s.top[i] || []).map(([token, value]) => [token, value]));
    for (const child of place.children[node]) if (top.has(s.tokens[child])) known.set(child, top.get(s.tokens[child]));
    const next = s.path[i + 1];
    if (next !== undefined && s.logprobs[i] !== undefined) known.set(next, s.logprobs[i]);
  });
  return known;
}

const target = (value) => (value === undefined ? "" : value === null ? "lp –" : "lp " + value.toFixed(2));
const targetLong = (value) => (value === undefined ? "not known" : target(value) + (value === null ? "" : ", p " + probability(Math.exp(value))));

function showTree(s) {
  const place = layOut(s), says = targetSays(s, place), folded = place.rows === 1 ? Math.max(2, Math.floor(($("tree").clientWidth - 24) / COLUMN)) : Infinity;
  const at = (depth, row) => [8 + (folded < Infinity ? depth % folded : depth) * COLUMN, 10 + (row + Math.floor(depth / folded)) * ROW];
  const where = s.tokens.map((_, i) => at(place.depth[i], place.row[i]));
  const edges = shape("g", {}), boxes = shape("g", {});
  for (let i = 1; i < s.tokens.length; i++) edges.append(edge(where[s.parents[i]], where[i], place.onPath.has(i) ? "ok" : ""));
  s.tokens.forEach((token, i) => {
    const kind = i === 0 ? "root" : place.onPath.has(i) ? "ok" : "no";
    const rank = i ? place.children[s.parents[i]].indexOf(i) : 0;
    const given = i && s.said[s.parents[i]] ? s.said[i] / s.said[s.parents[i]] : null;
    const second = i === 0 ? "position " + s.position : "q " + (s.said[i] === null ? "–" : probability(s.said[i])) + " " + target(says.get(i));
    const title = tokenTitle(token) + "\nnode " + i + ", depth " + place.depth[i] + (i ? ", child " + (rank + 1) + "\ndraft: path " +
      digits(s.said[i], 4) + ", given its parent " + digits(given, 4) + "\ntarget: " + targetLong(says.get(i)) : "");
    boxes.append(box(where[i][0], where[i][1], kind, visible(tokenText(token), 14), second, title));
  });
  const deepest = Math.max(...place.depth);
  let rows = place.rows + Math.floor(deepest / folded), columns = Math.min(folded, deepest + 1);
  const last = s.path[s.path.length - 1], own = s.path.length - 1;
  if (s.emitted.length > own) {  // else the answer ended inside the path
    const free = place.children[last].length === 0;
    const spot = at(place.depth[last] + 1, free ? place.row[last] : rows - Math.floor((place.depth[last] + 1) / folded));
    rows = Math.max(rows + (free ? 0 : 1), 1 + Math.floor((place.depth[last] + 1) / folded));
    columns = Math.min(folded, Math.max(columns, place.depth[last] + 2));
    edges.append(edge(where[last], spot, "extra"));
    const token = s.emitted[own];
    boxes.append(box(spot[0], spot[1], "extra", visible(tokenText(token), 14), target(s.logprobs[own]), tokenTitle(token) + "\nthe target's own token\n" + targetLong(s.logprobs[own])));
  }
  const width = 16 + columns * COLUMN, height = 20 + rows * ROW;
  const picture = shape("svg", { width, height, viewBox: "0 0 " + width + " " + height, role: "img" }, edges, boxes);
  $("tree").replaceChildren(picture);
}

function showWhy(s) {
  const fact = (name, value, kind) => element("span", kind || "", name + " ", element("b", "", value));
  const all = s.seconds.reduce((a, b) => a + (b || 0), 0);
  const counts = { proposed: s.drafted, verified: s.tokens.length - 1, accepted: s.path.length - 1, emitted: s.emitted.length };
  const facts = [
    fact("", s.reason || "–"),
    fact("draft", s.draft || "none asked"),
    ...Object.entries(counts).map(([name, count]) => fact(name, String(count))),
    fact("draft, model, verify", s.seconds.map((x) => digits(x === null ? null : 1000 * x, 2)).join(" + ") + " = " + milliseconds(all)),
  ];
  if (s.plain !== null) facts.push(fact("plain step", milliseconds(s.plain)));
  if (s.batch > 1) facts.push(fact("requests in the step", String(s.batch)));
  if (s.failure) facts.push(fact("refused", s.failure, "bad"));
  $("why").replaceChildren(...facts);
}

// ---- the text

const groups = [];

function showText() {
  const text = $("text");
  text.append(element("span", "given", spelled(trace.first)));
  steps.forEach((s, i) => {
    const group = element("span", "step later");
    s.emitted.forEach((token, k) => {
      const piece = element("span", k < s.path.length - 1 ? "ok" : "", spelled(s.texts[k] || ""));
      piece.title = tokenTitle(token) + "\nstep " + (i + 1);
      group.append(piece);
    });
    group.addEventListener("click", () => show(i));
    groups.push(group);
    text.append(group);
  });
}

let shown = -1;

function growText(index) {
  for (let i = shown + 1; i <= index; i++) groups[i].classList.remove("later");
  for (let i = shown; i > index; i--) groups[i].classList.add("later");
  if (groups[shown]) groups[shown].classList.remove("now");
  groups[index].classList.add("now");
  shown = index;
  const view = $("text"), end = groups[index].offsetTop - view.offsetTop;
  if (end > view.scrollTop + view.clientHeight - 60 || end < view.scrollTop) view.scrollTop = end - view.clientHeight / 2;
}

// ---- moving about

function show(index) {
  if (!steps.length) return;
  current = Math.max(0, Math.min(steps.length - 1, index));
  $("slider").value = current;
  $("where").textContent = "step " + (current + 1) + " of " + steps.length;
  showWhy(steps[current]);
  showTree(steps[current]);
  growText(current);
  showStrip();
}

function nextTree() {
  for (let i = 1; i <= steps.length; i++) {
    const index = (current + i) % steps.length;
    if (steps[index].tokens.length > 1) return index;
  }
  return current;
}

const moves = {
  ArrowLeft: () => current - 1, ArrowRight: () => current + 1, PageUp: () => current - 10, PageDown: () => current + 10,
  Home: () => 0, End: () => steps.length - 1, n: nextTree,
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || !(event.key in moves)) return;
  event.preventDefault();
  show(moves[event.key]());
});
for (const button of document.querySelectorAll("[data-go]")) button.addEventListener("click", () => show(moves[button.dataset.go]()));
$("slider").max = Math.max(0, steps.length - 1);
$("slider").addEventListener("input", (event) => show(Number(event.target.value)));
$("strip").addEventListener("click", (event) => show(Math.floor((event.offsetX / $("strip").clientWidth) * steps.length)));
window.addEventListener("resize", showStrip);
$("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  showStrip();
});

showHead();
showText();
showCharts();
const linked = /^#step=(\d{1,6})$/.exec(location.hash);  // #step=12 opens the twelfth
show(linked ? Number(linked[1]) - 1 : 0);
if (!steps.length) $("where").textContent = "no decode steps";
