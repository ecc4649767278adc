"use strict";
// The page: its link to the server, the grid of all sources, one source, and what keys do.

const AHEAD = 2;           // pictures under way of the source that is shown alone
const GRID_PAUSE = 200;    // milliseconds between two pictures of a source in the grid
const ALL = [["Results, server-sent events", "/results"], ["Figures for Prometheus", "/metrics"], ["Health", "/healthz"]];

let figures = { sources: [], viewers: 0, over: false };
let link = null, delay = 500;
let chosen = null;         // the name of the source that is shown alone, null in the grid
let paused = false;
const cards = new Map();   // name → card of the grid
const asked = new Map();   // form of a picture → how many of it are under way

const choice = () => ({ top: +part("top").value, score: +part("score").value });
const big = new Picture(part("picture"), choice);
const sourceOf = name => figures.sources.find(source => source.name === name);
const hashOf = name => name === null ? "#/" : `#/${encodeURIComponent(name)}`;

// Which source the address names; of a run with one source it is always that one.
function route() {
  const [only, ...others] = figures.sources;
  const single = only && !others.length;
  document.body.toggleAttribute("data-single", Boolean(single));
  let name = null;
  try { name = decodeURIComponent(location.hash.slice(2)) || null; } catch { /* no name of ours */ }
  if (single) name = only.name;
  else if (name !== null && !sourceOf(name)) name = null;
  document.body.dataset.view = !only ? "empty" : name === null ? "grid" : "one";
  if (name === chosen) return;
  chosen = name;
  pause(false);
  point(null);
  big.clear();
  const small = cards.get(name)?.picture;
  if (small?.image) createImageBitmap(small.image).then(image => { if (chosen === name && !big.image) big.take(small.result, image); });
  part("title").textContent = name ?? "";
  part("place").textContent = "";
  document.title = name === null ? "stream-rpn" : `${name} · stream-rpn`;
  if (name !== null) {
    const path = encodeURIComponent(name);
    showAddresses(document.querySelector("aside .addresses"),
      [["Picture with boxes, JPEG", `/frame/${path}.jpg`], ["Moving picture, MJPEG", `/mjpeg/${path}`], ...ALL]);
  }
  show();
  askAll();
}

function card(name) {
  const canvas = make("canvas"), nothing = make("p", { className: "nothing" });
  const well = make("div", { className: "well" }, canvas, nothing);
  const title = make("b", { textContent: name, title: name }), state = make("span", { className: "state" });
  const figures = make("span", { className: "figures" }), age = make("span", { className: "figures" });
  const history = make("div");
  const element = make("a", { className: "card", href: hashOf(name) }, well,
    make("div", { className: "line" }, title, state), make("div", { className: "line" }, figures, age), history);
  const picture = new Picture(canvas, choice, { labels: false, high: "middle" });
  const made = { element, picture, nothing, state, figures, age, history, seen: false, timer: 0 };
  // Pictures that are scrolled away are not asked for.
  new IntersectionObserver(([entry]) => { made.seen = entry.isIntersecting; askSmall(name); }).observe(element);
  cards.set(name, made);
  return made;
}

function showGrid() {
  for (const [name, made] of cards) {
    if (!sourceOf(name)) { clearTimeout(made.timer); made.element.remove(); cards.delete(name); }
  }
  figures.sources.forEach((source, index) => {
    const made = cards.get(source.name) || card(source.name), [state, words] = stateOf(source);
    made.element.dataset.state = state;
    Object.assign(made.state, { textContent: words }).dataset.state = state;
    made.figures.textContent = rateOf(source);
    made.age.textContent = ageOf(source);
    made.nothing.textContent = made.picture.image ? "" : source.picture ? "" : words;
    made.history.replaceChildren(spark(source.history.rate, "rate"));
    const place = part("grid").children[index];
    if (place !== made.element) part("grid").insertBefore(made.element, place || null);
    askSmall(source.name);
  });
}

function show() {
  const [state, words] = stateOfAll(figures.sources);
  if (link || figures.over) Object.assign(part("connection"), { textContent: words }).dataset.state = state;
  if (chosen === null) return showGrid();
  const source = sourceOf(chosen);
  if (!source) return;
  if (figures.sources.length > 1 && (link || figures.over)) {
    const [own, said] = stateOf(source);
    Object.assign(part("connection"), { textContent: said }).dataset.state = own;
  }
  part("stage").classList.toggle("still", ["reconnecting", "failed"].includes(source.state));
  part("nothing").textContent = source.picture || big.image ? "" : stateOf(source)[1];
  showMinute(source);
  showFigures(source, figures.viewers);
  askBig();
}

// A picture is asked for once the one before has been drawn, so that a slow browser or line gets
// fewer of them instead of late ones; a hidden page asks for none.
function ask(source, small, most) {
  const form = small ? `${source.key} small` : `${source.key}`;
  if (link?.readyState !== WebSocket.OPEN || document.hidden || !source.picture) return;
  for (let n = asked.get(form) || 0; n < most; n++) {
    link.send(form);
    asked.set(form, n + 1);
  }
}

function askBig() {
  const source = sourceOf(chosen);
  if (source && !paused) ask(source, false, AHEAD);
}

function askSmall(name) {
  const source = sourceOf(name), made = cards.get(name);
  if (source && made?.seen && chosen === null && !made.timer) ask(source, true, 1);
}

function askAll() {
  askBig();
  for (const name of cards.keys()) askSmall(name);
}

async function receive(data) {
  const head = new DataView(data), key = head.getUint32(0), small = head.getUint8(4) === 1;
  const length = head.getUint32(5), form = small ? `${key} small` : `${key}`;
  const result = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 9, length)));
  const jpeg = new Uint8Array(data, 9 + length), source = figures.sources.find(each => each.key === key);
  try {
    if (!source) return;
    const made = cards.get(source.name);
    if (small && made) {
      await made.picture.show(result, jpeg);
      made.nothing.textContent = "";
      made.timer = setTimeout(() => { made.timer = 0; askSmall(source.name); }, GRID_PAUSE);
    } else if (!small && source.name === chosen && !paused) {
      await big.show(result, jpeg, () => source.name === chosen && !paused);
      if (big.result !== result) return;
      part("stage").style.setProperty("--ratio", `${result.width} / ${result.height}`);
      part("place").textContent = result.pts_seconds === null
        ? `frame ${number(result.frame)}` : `frame ${number(result.frame)} · ${result.pts_seconds.toFixed(2)} s`;
      showTip();
    }
  } finally {
    asked.set(form, Math.max((asked.get(form) || 0) - 1, 0));
    if (!small && source?.name === chosen) askBig();
  }
}

function connect() {
  const token = new URLSearchParams(location.search).get("token");
  const query = token ? `?token=${encodeURIComponent(token)}` : "";
  const socket = new WebSocket(`${location.origin.replace(/^http/, "ws")}/live${query}`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => {
    link = socket;
    delay = 500;
    asked.clear();
    part("again").hidden = true;
    document.body.classList.remove("away");
  };
  socket.onmessage = event => {
    if (typeof event.data !== "string") return receive(event.data);
    figures = JSON.parse(event.data);
    route();
    show();
  };
  socket.onclose = () => {
    link = null;
    // What has come to its end is no fault: it stays as it is, until somebody wants to look again.
    if (figures.over) {
      part("again").hidden = false;
      return show();
    }
    document.body.classList.add("away");
    Object.assign(part("connection"), { textContent: "not connected, trying again" }).dataset.state = "away";
    setTimeout(connect, delay);
    delay = Math.min(delay * 1.5, 4000);
  };
}

function pause(wish) {
  paused = wish;
  part("pause").textContent = paused ? "Go on" : "Pause";
  part("pause").setAttribute("aria-pressed", paused);
  if (!paused) askBig();
}

async function save() {
  if (!big.image) return;
  const name = `${chosen}-frame-${big.result.frame}.png`, url = URL.createObjectURL(await big.file());
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

const fullScreen = () => document.fullscreenElement ? document.exitFullscreen() : part("stage").requestFullscreen?.();

let pointer = null;  // where the pointer is over the picture: { x, y }; null where keys choose

function point(index) {
  big.pointed = index;
  big.draw();
  showTip();
}

// What is under the pointer moves with the picture; what keys chose stays the same rank.
function showTip() {
  if (pointer) {
    const found = big.at(pointer.x, pointer.y);
    if (found !== big.pointed) return point(found);
  }
  const each = big.boxes[big.pointed ?? -1], tip = part("tip");
  tip.hidden = !each;
  if (!each) return;
  const [x1, y1, x2, y2] = each.box, id = each.id === undefined ? `${each.rank + 1}. best` : `id ${each.id}`;
  tip.textContent = `score ${each.score.toFixed(2)} · ${Math.round(x2 - x1)} × ${Math.round(y2 - y1)} px · ${id}`;
  const [left, top, , bottom] = big.placeOf(each), stage = part("stage");
  const above = top - tip.offsetHeight - 6, below = bottom + 6;
  tip.style.left = `${Math.max(0, Math.min(left, stage.clientWidth - tip.offsetWidth))}px`;
  tip.style.top = `${above >= 0 ? above : below + tip.offsetHeight <= stage.clientHeight ? below : Math.max(0, top + 6)}px`;
}

function go(step) {
  const names = figures.sources.map(source => source.name), next = names.indexOf(chosen) + step;
  if (names[next] !== undefined) location.hash = hashOf(names[next]);
}

const KEYS = {
  " ": () => pause(!paused),
  f: fullScreen,
  s: save,
  ArrowLeft: () => go(-1),
  ArrowRight: () => go(1),
  Escape: () => { if (big.pointed !== null) { pointer = null; point(null); } else location.hash = hashOf(null); },
  ArrowDown: () => { pointer = null; point(Math.min((big.pointed ?? -1) + 1, big.boxes.length - 1)); },
  ArrowUp: () => { pointer = null; point(Math.max((big.pointed ?? 1) - 1, 0)); },
};

document.addEventListener("keydown", event => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (chosen === null || event.ctrlKey || event.metaKey || event.altKey || !KEYS[key]) return;
  // Sliders and choices have keys of their own, and so have buttons and the list of boxes.
  const own = event.target.matches("input, select") ? key !== "Escape" : event.target.matches("button, a") && key === " ";
  if (own || (/ArrowUp|ArrowDown/.test(key) && event.target !== part("picture"))) return;
  if (key === "Escape" && document.fullscreenElement) return;
  event.preventDefault();
  KEYS[key]();
});
part("picture").addEventListener("pointermove", event => { pointer = { x: event.clientX, y: event.clientY }; showTip(); });
part("picture").addEventListener("pointerdown", event => { pointer = { x: event.clientX, y: event.clientY }; showTip(); });
part("picture").addEventListener("pointerleave", event => {
  if (event.pointerType === "mouse") { pointer = null; point(null); }
});
part("pause").onclick = () => pause(!paused);
part("save").onclick = save;
part("full").onclick = fullScreen;
part("again").onclick = connect;

for (const [id, text] of [["top", v => v], ["score", v => (+v).toFixed(2)]]) {
  const change = () => {
    part(`${id}-value`).textContent = text(part(id).value);
    big.draw();
    for (const { picture } of cards.values()) picture.draw();
  };
  part(id).addEventListener("input", change);
  change();
}

// By the system's preference, until somebody chooses; not all browsers keep what pages ask them to.
const memory = { get theme() { try { return localStorage.theme || ""; } catch { return ""; } },
  set theme(name) { try { localStorage.theme = name; } catch { /* it lasts as long as the page */ } } };
function theme(name) {
  part("theme").value = document.documentElement.dataset.theme = name;
  if (!name) delete document.documentElement.dataset.theme;
}
part("theme").onchange = () => { memory.theme = part("theme").value; theme(part("theme").value); };
theme(memory.theme);

showAddresses(document.querySelector("#programs .addresses"), ALL);
addEventListener("hashchange", route);
document.addEventListener("visibilitychange", askAll);
document.addEventListener("fullscreenchange", () => big.draw());
connect();
