"use strict";
const part = id => document.getElementById(id);
const facts = JSON.parse(part("facts").textContent), images = JSON.parse(part("images").textContent);
const { width, height } = facts.frame;
const LEVEL_COLOURS = ["#3d8fd6", "#2a9d8f", "#d98e1f", "#dc5f4b", "#8b6fd0", "#6f8f35"];
const ACCENT = "#4cc2ff", BAD = "#ff6b6b", GOOD = "#45d483", TRUTH = "#ffc53d";
// The gradient of annotated videos: weak boxes in cold colours, strong ones in hot ones.
const GRADIENT = [[60, 90, 255], [0, 190, 255], [40, 225, 120], [255, 215, 0], [255, 55, 70]];
const OVERVIEW = 20;

// What is looked at: an index of points, of levels, and of anchors within the cell.
const chosen = { point: 0, level: 0, anchor: 0 };

function mixed(share) {
  const place = Math.min(Math.max(share, 0), 1) * (GRADIENT.length - 1);
  const low = Math.min(Math.floor(place), GRADIENT.length - 2), rest = place - low;
  return GRADIENT[low].map((v, i) => Math.round(v + rest * (GRADIENT[low + 1][i] - v)));
}
const colour = score => `rgb(${mixed(score)})`;
const levelColour = level => LEVEL_COLOURS[level % LEVEL_COLOURS.length];
const count = value => value.toLocaleString("en");
const near = (value, places = 1) => value.toFixed(places).replace(/^-(0(\.0*)?)$/, "$1");
const sides = ([x1, y1, x2, y2]) => `${Math.round(x2 - x1)}×${Math.round(y2 - y1)}`;

// Elements, with text as text: names of files may hold anything.
function element(name, attributes = {}, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "style") made.style.cssText = value;
    else if (key.startsWith("on")) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...inside);
  return made;
}
function shape(name, attributes = {}, title) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (title) {
    const text = document.createElementNS("http://www.w3.org/2000/svg", "title");
    text.textContent = title;
    made.append(text);
  }
  return made;
}

// A picture of the frame to draw on, in the frame's own pixels.
class Stage {
  constructor(id) {
    this.place = part(id);
    this.svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.place.getAttribute("aria-label") });
    this.below = shape("g");
    this.layer = shape("g");
    this.svg.append(shape("image", { href: images.frame, width, height, preserveAspectRatio: "none" }), this.below, this.layer);
    this.place.append(this.svg);
  }
  clear(veil = true, view = [0, 0, width, height]) {
    this.svg.setAttribute("viewBox", view.join(" "));
    this.place.style.setProperty("--ratio", view[2] / view[3]);
    this.below.replaceChildren();
    this.layer.replaceChildren();
    if (veil) this.below.append(shape("rect", { class: "veil", x: view[0], y: view[1], width: view[2], height: view[3] }));
    return this;
  }
  box([x1, y1, x2, y2], stroke, { classes = "", weight = 2, title = "", halo = true, fill = "" } = {}) {
    const at = { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0) };
    const group = shape("g", {}, title);
    if (halo) group.append(shape("rect", { ...at, class: "halo", style: `stroke-width:${weight + 2}` }));
    group.append(shape("rect", { ...at, class: `box ${classes}`, stroke, style: `stroke-width:${weight}${fill ? `;fill:${fill}` : ""}` }));
    this.layer.append(group);
    return group;
  }
  cross([x, y]) {
    const size = Math.max(width, height) / 70;
    for (const [style, weight] of [["#000", 4], ["#fff", 2]]) {
      this.layer.append(shape("path", { d: `M${x - size} ${y}h${2 * size}M${x} ${y - size}v${2 * size}`, stroke: style, fill: "none", style: `stroke-width:${weight}` }));
    }
  }
}

// Boxes may reach far beyond the frame: what is shown is it and as much of them as fits.
function around(boxes) {
  const roomX = width * 0.25, roomY = height * 0.25;
  const x1 = Math.max(-roomX, Math.min(0, ...boxes.map(b => b[0] - 4)));
  const y1 = Math.max(-roomY, Math.min(0, ...boxes.map(b => b[1] - 4)));
  const x2 = Math.min(width + roomX, Math.max(width, ...boxes.map(b => b[2] + 4)));
  const y2 = Math.min(height + roomY, Math.max(height, ...boxes.map(b => b[3] + 4)));
  return [x1, y1, x2 - x1, y2 - y1];
}

function rows(table, heads, lines) {
  const head = element("thead", {}, element("tr", {}, ...heads.map(text => element("th", {}, text))));
  const body = element("tbody", {}, ...lines.map(({ cells, classes = "" }) => element("tr", { class: classes },
    ...cells.map((cell, i) => element(i ? "td" : "th", i ? {} : { scope: "row" }, cell)))));
  table.replaceChildren(head, body);
}

// --- the overview: choosing a point -------------------------------------------------------------
const overview = new Stage("overview-stage");
overview.place.tabIndex = 0;

function pointName(point) {
  const [x, y] = point.at.map(Math.round);
  return `${point.name} (${x}, ${y})`;
}

function drawOverview() {
  overview.clear(false);
  const { boxes, scores } = facts.proposals;
  for (let rank = Math.min(OVERVIEW, boxes.length) - 1; rank >= 0; rank--) {
    overview.box(boxes[rank], colour(scores[rank]), { title: `proposal ${rank + 1}, score ${scores[rank]}` });
  }
  const radius = Math.max(width, height) / 130;
  facts.points.forEach((point, index) => {
    const dot = shape("circle", { cx: point.at[0], cy: point.at[1], r: index === chosen.point ? 1.7 * radius : radius,
      class: index === chosen.point ? "dot chosen" : "dot", "data-point": index }, pointName(point));
    dot.onclick = () => choose({ point: index });
    overview.layer.append(dot);
  });
  const mine = overview.layer.querySelector(".chosen");
  if (mine) overview.layer.append(mine);
}

// The nearest point in the direction of an arrow key.
function step(key) {
  const from = facts.points[chosen.point].at;
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key] || [0, 0];
  let best = -1, least = Infinity;
  facts.points.forEach((point, index) => {
    const [x, y] = [point.at[0] - from[0], point.at[1] - from[1]];
    const ahead = x * dx + y * dy, aside = Math.abs(x * dy) + Math.abs(y * dx);
    if (ahead > 1 && ahead + 2 * aside < least) [best, least] = [index, ahead + 2 * aside];
  });
  if (best >= 0) choose({ point: best });
}
overview.place.addEventListener("keydown", event => {
  if (!event.key.startsWith("Arrow")) return;
  event.preventDefault();
  step(event.key);
});

// --- 2: cells -----------------------------------------------------------------------------------
const grid = new Stage("grid-stage");
const inFrame = (x, y) => [x / facts.input.scale[0], y / facts.input.scale[1]];

function drawGrid() {
  const level = facts.levels[chosen.level], [rowCount, columnCount] = level.size;
  const [strideY, strideX] = level.stride;
  grid.clear(false);
  const [right, bottom] = inFrame(columnCount * strideX, rowCount * strideY);
  let path = "";
  for (let column = 0; column <= columnCount; column++) path += `M${inFrame(column * strideX, 0)[0]} 0V${bottom}`;
  for (let row = 0; row <= rowCount; row++) path += `M0 ${inFrame(0, row * strideY)[1]}H${right}`;
  grid.layer.append(shape("path", { d: path, fill: "none", stroke: "#fff", "stroke-opacity": .55, style: "stroke-width:.7" }));
  const point = facts.points[chosen.point], [row, column] = point.cells[chosen.level];
  const [x1, y1] = inFrame(column * strideX, row * strideY), [x2, y2] = inFrame((column + 1) * strideX, (row + 1) * strideY);
  grid.box([x1, y1, x2, y2], levelColour(chosen.level), { weight: 3 });
  grid.cross(point.at);
  const cut = columnCount * strideX > facts.input.resized[1] || rowCount * strideY > facts.input.resized[0];
  part("grid-note").textContent = `Level ${level.name}: ${rowCount}×${columnCount} cells of ${strideX}×${strideY} input pixels. `
    + `The chosen point belongs to cell (${row}, ${column}), the one whose anchors are centred nearest to it.`
    + (cut ? " Cells at the right or below lie on padding." : "");
}

// --- 3: anchors and window ----------------------------------------------------------------------
const anchorStage = new Stage("anchor-stage");
const isFirst = () => chosen.point === 0;

function drawAnchors() {
  const point = facts.points[chosen.point], anchors = point.anchors[chosen.level];
  const withWindow = isFirst() && part("show-window").checked, withHeat = isFirst() && part("show-heat").checked;
  const cell = facts.cells[chosen.level];
  anchorStage.clear(true, around(anchors.map(a => a.anchor)));
  if (withHeat) {
    anchorStage.below.append(shape("image", { href: images.heat[chosen.level], width, height, preserveAspectRatio: "none" }));
  }
  if (withWindow) anchorStage.box(cell.window, "#ff9a4d", { weight: 2, title: "what the head depends on here" });
  anchors.forEach((anchor, a) => {
    if (a === chosen.anchor) return;
    anchorStage.box(anchor.anchor, levelColour(chosen.level), { weight: 1.5, classes: isInside(anchor) ? "" : "dashed", title: `anchor ${a + 1}` });
  });
  const mine = anchors[chosen.anchor];
  anchorStage.box(mine.anchor, ACCENT, { weight: 3, classes: isInside(mine) ? "" : "dashed", title: `anchor ${mine.a + 1}` });
  anchorStage.cross(point.at);
  rows(part("anchor-table"), ["Anchor", "w × h", "√area", "h ÷ w", "Lies"], anchors.map((anchor, a) => {
    const [x1, y1, x2, y2] = anchor.anchor_in_input, [w, h] = [x2 - x1, y2 - y1];
    return { classes: a === chosen.anchor ? "chosen" : "", cells: [`${a + 1}`, `${near(w)} × ${near(h)}`,
      near(Math.sqrt(w * h)), near(h / w, 2), isInside(anchor) ? "inside" : "sticks out"] };
  }));
  part("window-toggles").hidden = !isFirst();
  const [x1, y1, x2, y2] = cell.window_in_input;
  const sees = facts.levels[chosen.level].window_field;
  part("window-note").textContent = isFirst()
    ? `Orange: the head depends on ${x2 - x1}×${y2 - y1} pixels of the input there${sees === null ? "" : `, far from borders on ${sees}×${sees}`}; `
      + `half of the gradient comes from the ${cell.effective.half} pixels around the cell, nine tenths from ${cell.effective.most}. `
      + "Dashed anchors stick out of the picture. Sizes are in pixels of the input."
    : "Dashed anchors stick out of the picture. Sizes are in pixels of the input. What the window sees is known at the first point.";
}
function isInside({ anchor_in_input: [x1, y1, x2, y2] }) {
  const [h, w] = facts.input.resized;
  return x1 >= 0 && y1 >= 0 && x2 <= w && y2 <= h;
}
for (const id of ["show-window", "show-heat"]) part(id).onchange = drawAnchors;

// --- 4: channels and heat -----------------------------------------------------------------------
const heat = new Stage("heat-stage");
const canvas = element("canvas");
const scores = facts.levels.map(level => Uint8Array.from(atob(level.scores), c => c.charCodeAt(0)));

function drawChannels() {
  const anchors = facts.points[chosen.point].anchors[chosen.level], cell = facts.cells[chosen.level];
  const deltas = anchors.flatMap(a => a.deltas);
  const objectness = isFirst() ? cell.channels.objectness
    : facts.channels.objectness.length === anchors.length ? anchors.map(a => a.logit) : null;
  const line = (index, name, value, most) => {
    const bar = element("span", { class: value < 0 ? "bar minus" : "bar", style: `width:${Math.max(1, 70 * Math.abs(value) / most)}px` });
    return { cells: [`${index}`, name, near(value, 3), bar] };
  };
  const lines = [];
  const most = values => Math.max(...values.map(Math.abs), 1e-6);
  if (objectness) objectness.forEach((v, i) => lines.push(line(i, facts.channels.objectness[i], v, most(objectness))));
  else anchors.forEach((a, i) => lines.push(line(i, `object ${i + 1} − background ${i + 1}`, a.logit, most(anchors.map(b => b.logit)))));
  deltas.forEach((v, i) => lines.push(line(i, facts.channels.deltas[i], v, most(deltas))));
  const table = element("table");
  rows(table, ["Channel", "Meaning", "Value", ""], lines);
  part("channels").replaceChildren(table);
}

function drawHeat() {
  const level = facts.levels[chosen.level], [rowCount, columnCount] = level.size, A = level.per_cell;
  const values = scores[chosen.level];
  canvas.width = columnCount;
  canvas.height = rowCount;
  const pen = canvas.getContext("2d"), pixels = pen.createImageData(columnCount, rowCount);
  let highest = 0;
  for (let cell = 0; cell < rowCount * columnCount; cell++) highest = Math.max(highest, values[cell * A + chosen.anchor]);
  for (let cell = 0; cell < rowCount * columnCount; cell++) {
    const share = values[cell * A + chosen.anchor] / Math.max(highest, 1);
    pixels.data.set([...mixed(share), Math.round(40 + 190 * share)], 4 * cell);
  }
  pen.putImageData(pixels, 0, 0);
  heat.clear(true);
  const [w, h] = inFrame(columnCount * level.stride[1], rowCount * level.stride[0]);
  // A cell's anchors are centred at its corner or its middle; the picture of cells follows them.
  const [bx1, by1, bx2, by2] = level.base_anchors[chosen.anchor];
  const [x, y] = inFrame((bx1 + bx2) / 2 - level.stride[1] / 2, (by1 + by2) / 2 - level.stride[0] / 2);
  heat.below.append(shape("image", { href: canvas.toDataURL(), x, y, width: w, height: h, preserveAspectRatio: "none", style: "image-rendering:pixelated" }));
  heat.cross(facts.points[chosen.point].at);
  part("heat-note").textContent = `Objectness of level ${level.name}, anchor ${chosen.anchor + 1} (${sides(level.base_anchors[chosen.anchor])} input pixels): `
    + `one value a cell. The highest is ${(highest / 255).toFixed(2)}.`;
}

// --- 5: one anchor followed through -------------------------------------------------------------
const follow = new Stage("follow-stage");

function drawFollow() {
  const anchor = facts.points[chosen.point].anchors[chosen.level][chosen.anchor];
  follow.clear(true, around([anchor.anchor, anchor.moved]));
  follow.box(anchor.anchor, levelColour(chosen.level), { classes: "dashed", title: "anchor" });
  follow.box(anchor.moved, "#ffffff", { weight: 1.5, title: "moved by its deltas" });
  follow.box(anchor.box, ACCENT, { weight: 3, title: "clipped to the picture" });
  const [x1, y1, x2, y2] = anchor.anchor_in_input, [w, h] = [x2 - x1, y2 - y1], [cx, cy] = [x1 + w / 2, y1 + h / 2];
  const [dx, dy, dw, dh] = anchor.deltas, moved = anchor.moved_in_input;
  const limit = Math.log(1000 / 16), [gw, gh] = [Math.exp(Math.min(dw, limit)) * w, Math.exp(Math.min(dh, limit)) * h];
  const [fx1, fy1, fx2, fy2] = anchor.box.map(v => near(v));
  const equation = (name, text, result, key) => element("div", {}, ...(key ? [element("i", { class: "key", style: `border-color:${key}` })] : []),
    element("b", {}, name), result, element("code", {}, text));
  part("equations").replaceChildren(
    equation("Anchor", `centre ${near(cx)}, ${near(cy)} · sides ${near(w)} × ${near(h)}`, `${[x1, y1, x2, y2].map(v => near(v)).join(", ")}`, levelColour(chosen.level)),
    equation("x", `dx·w + cx = ${near(dx, 3)} · ${near(w)} + ${near(cx)}`, near(dx * w + cx)),
    equation("y", `dy·h + cy = ${near(dy, 3)} · ${near(h)} + ${near(cy)}`, near(dy * h + cy)),
    equation("width", `e^dw · w = e^${near(dw, 3)} · ${near(w)}`, near(gw)),
    equation("height", `e^dh · h = e^${near(dh, 3)} · ${near(h)}`, near(gh)),
    equation("Box", "centre ± half its sides", moved.map(v => near(v)).join(", "), "var(--soft)"),
    equation("Clipped", `to 0 … ${facts.input.resized[1]}, 0 … ${facts.input.resized[0]}`, anchor.box_in_input.map(v => near(v)).join(", "), ACCENT),
    equation("In the frame", `x ÷ ${facts.input.scale[0]}, y ÷ ${facts.input.scale[1]}`, `${fx1}, ${fy1}, ${fx2}, ${fy2}`),
    equation("Score", `1 / (1 + e^(${near(-anchor.logit, 3)})), number ${count(anchor.rank)} of its level`, near(anchor.score, 3)),
    equation("Fate", fateText(anchor), anchor.fate));
}
function fateText(anchor) {
  if (anchor.fate === "proposed") return `proposal ${anchor.place}`;
  if (anchor.fate === "suppressed") return `by ${anchor.by.place <= facts.proposals.boxes.length ? `proposal ${anchor.by.place}` : "a box beyond the top"}, IoU ${anchor.iou}`;
  if (anchor.fate === "beyond top") return `number ${count(anchor.place)} of those that outlive suppression`;
  if (anchor.fate === "not selected") return `the best ${count(facts.limits.pre_nms_top_n)} of a level are selected`;
  return "filtered after clipping";
}

// --- 7: suppression -----------------------------------------------------------------------------
const nms = new Stage("nms-stage");
nms.place.tabIndex = 0;
const slider = part("threshold"), drawn = part("drawn");
let before = false, pointed = -1, order = [];

function drawNMS() {
  const run = facts.suppressions[+slider.value], { boxes, scores, levels } = facts.candidates;
  part("threshold-value").textContent = run.threshold.toFixed(2) + (run.threshold === facts.limits.nms_thresh ? " (the model's)" : "");
  part("drawn-value").textContent = drawn.value;
  part("before").setAttribute("aria-pressed", before);
  part("after").setAttribute("aria-pressed", !before);
  nms.clear(true);
  order = (before ? boxes.map((_, i) => i) : run.kept).slice(0, +drawn.value);
  const by = pointed >= 0 ? run.suppressors[pointed] : -1;
  for (const index of [...order].reverse()) {
    const group = nms.box(boxes[index], colour(scores[index]), {
      classes: run.suppressors[index] === -1 ? "" : "dashed", weight: run.suppressors[index] === -1 ? 2 : 1.2,
      title: `number ${index + 1}, score ${scores[index]}` });
    if (pointed >= 0 && index !== pointed && index !== by) group.classList.add("dim");
    group.onpointerenter = () => aim(index);
    group.onclick = () => aim(index);
  }
  if (by >= 0) nms.box(boxes[by], BAD, { weight: 3, title: "its suppressor" });
  if (pointed >= 0) nms.box(boxes[pointed], "#fff", { weight: 3, classes: run.suppressors[pointed] === -1 ? "" : "dashed" }).style.pointerEvents = "none";
  part("nms-status").textContent = status(run, by) || `${count(run.total)} kept of ${count(facts.levels.reduce((sum, level) => sum + level.selected, 0))} candidates. ${before ? "Dashed ones are suppressed." : "Show “Before” to see who was suppressed."}`;
  function status() {
    if (pointed < 0) return "";
    const name = `Number ${pointed + 1} by score (${scores[pointed]}, level ${facts.levels[levels[pointed]].name}, ${sides(boxes[pointed])} pixels)`;
    if (by === -1) {
      const victims = run.suppressors.reduce((sum, s) => sum + (s === pointed), 0);
      return `${name} is kept${victims ? `, and suppresses ${victims} ${victims === 1 ? "other" : "others"}` : ""}.`;
    }
    if (by === -2) return `${name} is not reached: ${count(facts.limits.post_nms_top_n)} better ones were kept before.`;
    return `${name} is suppressed by number ${by + 1} (${scores[by]}): their IoU is ${run.overlaps[pointed].toFixed(2)}, above ${run.threshold}.`;
  }
}
function aim(index) {
  if (pointed === index) return;
  pointed = index;
  drawNMS();
}
nms.place.addEventListener("pointerleave", () => aim(-1));
nms.place.addEventListener("keydown", event => {
  const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (event.key === "Escape") return aim(-1);
  if (!move || !order.length) return;
  event.preventDefault();
  const at = order.indexOf(pointed);
  aim(order[at < 0 ? (move > 0 ? 0 : order.length - 1) : (at + move + order.length) % order.length]);
});
slider.value = facts.suppressions.findIndex(run => run.threshold === facts.limits.nms_thresh);
for (const input of [slider, drawn]) input.addEventListener("input", drawNMS);
part("before").onclick = () => { before = true; drawNMS(); };
part("after").onclick = () => { before = false; pointed = -1; drawNMS(); };

// --- 7: why not ---------------------------------------------------------------------------------
const why = new Stage("why-stage");
const TITLES = { proposed: "It was proposed", "no anchor fits": "No anchor fits", "no box fits": "The head moved no box onto it",
  "not selected": "It scored too low", "too small": "It was filtered by size", "scored low": "It was filtered by score",
  suppressed: "It was suppressed", "beyond top": "It came after the last", "not finite": "It is not a number" };
let object = -1;  // index of the object in question, -1 for the chosen point

function card(place, answer, what) {
  const good = answer.outcome === "proposed";
  const inside = [element("p", {}, what), element("span", { class: `outcome ${good ? "yes" : "no"}` }, TITLES[answer.outcome])];
  if (answer.obstacles.length > 1) inside.push(element("ol", {}, ...answer.obstacles.map(o => element("li", {}, o.sentence, ...remedy(o)))));
  else inside.push(element("p", {}, answer.sentence, ...answer.obstacles.flatMap(remedy)));
  if (answer.best_anchor_iou !== undefined) {
    inside.push(element("p", { class: "note" }, `The best anchor covers it with IoU ${answer.best_anchor_iou}, the best box that the head made with ${answer.best_box_iou}.`));
  }
  place.replaceChildren(...inside);
}
function remedy({ remedy: options }) {
  return Object.entries(options).flatMap(([name, value]) => [" ", element("code", {}, `--${name.replace("_", "-")} ${+value.toPrecision(6)}`), " would let it pass."]);
}

function drawWhy() {
  const point = facts.points[chosen.point];
  const answer = object >= 0 ? facts.truth.answers[object] : point.answer;
  const what = object >= 0 ? `Object ${object + 1}` : `The best anchor at ${point.name === "chosen" ? "the chosen point" : pointName(point)}`;
  card(part("why"), answer, what);
  const shown = [answer.contender?.box, answer.best_anchor].filter(Boolean);
  why.clear(true, around(shown));
  if (object >= 0) why.box(answer.target, TRUTH, { weight: 3, title: "the object" });
  if (answer.best_anchor && !answer.contender) why.box(answer.best_anchor, "#fff", { classes: "dashed", title: "the best anchor" });
  answer.obstacles.flatMap(o => o.suppressors).slice(0, 6).forEach((s, i) => why.box(s.box, BAD, { weight: i ? 1.5 : 2.5, classes: i ? "dashed" : "", title: `suppresses it, IoU ${s.iou}` }));
  if (answer.contender) why.box(answer.contender.box, answer.outcome === "proposed" ? GOOD : ACCENT, { weight: 3, title: "the box in question" });
  if (object < 0) why.cross(point.at);
  const key = (text, style) => element("span", { style: "margin-right:14px;white-space:nowrap" }, element("i", { class: "key", style: `border-color:${style}` }), text);
  part("why").append(element("p", { class: "note" },
    ...(object >= 0 ? [key("object", TRUTH)] : []),
    ...(answer.contender ? [key("its box", answer.outcome === "proposed" ? GOOD : ACCENT)] : []),
    ...(answer.obstacles.some(o => o.suppressors.length) ? [key("who suppresses it", BAD)] : [])));
}

function drawObjects() {
  const table = part("objects");
  if (!table) return;
  rows(table, ["Object", "Answer", "Best anchor", "Anchors"], facts.truth.answers.map((answer, index) => {
    const button = element("button", { type: "button", "aria-pressed": index === object, onclick: () => { object = index === object ? -1 : index; drawObjects(); drawWhy(); } }, `${index + 1}`);
    return { classes: index === object ? "chosen" : "", cells: [button, answer.outcome === "proposed" ? `proposal ${answer.place}` : answer.outcome,
      `IoU ${answer.best_anchor_iou}`, `${facts.truth.positives_of[index]}`] };
  }));
}

// --- 8: ground truth ----------------------------------------------------------------------------
const truth = facts.truth && new Stage("truth-stage");

function drawTruth() {
  if (!truth) return;
  const show = name => document.querySelector(`#truth-toggles [value=${name}]`).checked;
  truth.clear(true);
  const radius = Math.max(width, height) / 260;
  if (show("sample")) {
    for (const [points, fill] of [[facts.truth.sample.negatives, "#8fa3b5"], [facts.truth.sample.positives, GOOD]]) {
      for (const [cx, cy] of points) truth.layer.append(shape("circle", { cx, cy, r: radius, fill, stroke: "#000", "stroke-opacity": .5 }));
    }
  }
  if (show("positives")) for (const box of facts.truth.positive_anchors) truth.box(box, GOOD, { weight: 1, halo: false });
  if (show("best")) facts.truth.best_anchors.forEach((box, i) => truth.box(box, ACCENT, { weight: 2.5, title: `best of object ${i + 1}, IoU ${facts.truth.best_overlaps[i]}` }));
  if (show("objects")) facts.truth.objects.forEach((box, i) => truth.box(box, TRUTH, { weight: 3, title: `object ${i + 1}` }));
}
if (truth) part("truth-toggles").onchange = drawTruth;

// --- 9: translation -----------------------------------------------------------------------------
const shift = new Stage("shift-stage");
let shiftIndex = 0;

function quantile(values, share) {
  const sorted = [...values].sort((a, b) => a - b), place = share * (sorted.length - 1), low = Math.floor(place);
  return sorted.length ? sorted[low] + (place - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]) : NaN;
}
function drawShift() {
  const named = s => s.pixels === s.stride ? "a stride" : "half of it";
  part("shift-rows").replaceChildren(...facts.shifts.map(s => element("tr", {}, ...[
    named(s), near(s.expected, 2), `${s.found} of ${s.compared}`,
    s.found ? near(quantile(s.moved, .5), 2) : "–", s.found ? `${near(quantile(s.moved, .25), 2)} … ${near(quantile(s.moved, .75), 2)}` : "–",
  ].map((text, i) => element(i ? "td" : "th", i ? {} : { scope: "row" }, text)))));
  part("shift-choice").replaceChildren(...facts.shifts.map((s, index) => element("button", { type: "button", "aria-pressed": index === shiftIndex,
    onclick: () => { shiftIndex = index; drawShift(); part("shift-choice").children[index].focus(); } }, `${s.pixels} px`)));
  const now = facts.shifts[shiftIndex];
  shift.clear(true);
  now.boxes.slice(0, 15).forEach((box, i) => {
    shift.box(box, "#fff", { weight: 1.2, classes: "dashed", halo: false });
    shift.box(now.after[i], ACCENT, { weight: 1.8, title: `moved ${near(now.moved[i], 2)} pixels` });
  });
}

// --- all together -------------------------------------------------------------------------------
function choose(change) {
  Object.assign(chosen, change);
  const point = facts.points[chosen.point];
  if (change.point !== undefined) {
    // Look where the best anchor of the point is.
    [chosen.level, chosen.anchor] = [point.answer.contender.level, point.answer.contender.a];
    object = -1;
  } else if (change.level !== undefined) {
    const logits = point.anchors[chosen.level].map(anchor => anchor.logit ?? -Infinity);
    chosen.anchor = logits.indexOf(Math.max(...logits));
  }
  for (const name of ["point", "level"]) part(name).value = chosen[name];
  part("anchor").replaceChildren(...point.anchors[chosen.level].map((anchor, a) => {
    const [x1, y1, x2, y2] = anchor.anchor_in_input;
    return element("option", { value: a }, `${a + 1}: ${Math.round(x2 - x1)}×${Math.round(y2 - y1)}`);
  }));
  part("anchor").value = chosen.anchor;
  drawOverview();
  card(part("overview-answer"), point.answer, `${chosen.point ? `The point “${pointName(point)}”` : `The first point (${point.at.map(Math.round).join(", ")})`}: what became of its best anchor?`);
  for (const draw of [drawGrid, drawAnchors, drawChannels, drawHeat, drawFollow, drawWhy, drawObjects]) draw();
}

part("point").replaceChildren(...facts.points.map((point, index) => element("option", { value: index }, index ? pointName(point) : `first (${point.at.map(Math.round).join(", ")})`)));
part("level").replaceChildren(...facts.levels.map((level, index) => element("option", { value: index }, `${level.name}, stride ${level.stride[1]}`)));
for (const name of ["point", "level", "anchor"]) part(name).onchange = event => choose({ [name]: +event.target.value });

const theme = part("theme");
function paint(name) {
  document.documentElement.dataset.theme = name;
  theme.textContent = name === "dark" ? "Light" : "Dark";
}
const darkness = matchMedia("(prefers-color-scheme: dark)");
darkness.onchange = () => paint(darkness.matches ? "dark" : "light");
theme.onclick = () => paint(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
paint(darkness.matches ? "dark" : "light");

const firstMissed = facts.truth ? facts.truth.answers.findIndex(answer => answer.outcome !== "proposed") : -1;
choose({ point: 0 });
if (firstMissed >= 0) { object = firstMissed; drawObjects(); drawWhy(); }
drawNMS();
drawTruth();
drawShift();
document.documentElement.dataset.ready = "yes";
