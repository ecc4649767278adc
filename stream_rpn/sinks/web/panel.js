"use strict";
// Figures in words and lines: what the server tells of a source, made readable.

const part = id => document.getElementById(id);
const number = value => value.toLocaleString("en");

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

const SILENT = 5;  // seconds without a result after which a source that runs is said to be silent

// What has become of a source: [state for the eye, words].
function stateOf(source) {
  const results = `${number(source.results)} result${source.results === 1 ? "" : "s"}`;
  const running = source.state === "live" || source.state === "running";
  if (running && source.silent_seconds > SILENT) return ["silent", `no result for ${duration(source.silent_seconds)}`];
  switch (source.state) {
    case "waiting": return ["waiting", source.seconds > SILENT ? `waiting for ${duration(source.seconds)}` : "waiting"];
    case "reconnecting": return ["reconnecting", `reconnecting for ${duration(source.seconds)}`];
    case "finished": return ["finished", `finished: ${results}`];
    case "stopped": return ["stopped", `stopped after ${results}`];
    case "failed": return ["failed", source.results ? `failed after ${results}` : "failed"];
    default: return [source.state, source.state];
  }
}

// The same of all sources: of one its own, of several how many are what.
function stateOfAll(sources) {
  if (sources.length === 1) return stateOf(sources[0]);
  const states = sources.map(source => stateOf(source)[0]);
  const counts = new Map();
  for (const state of states) counts.set(state, (counts.get(state) || 0) + 1);
  const order = ["failed", "reconnecting", "silent", "live", "running", "waiting", "stopped", "finished"];
  return [order.find(state => counts.has(state)) || "waiting",
    [...counts].map(([state, count]) => `${count} ${state}`).join(" · ") || "no source yet"];
}

function rateOf(source) {
  if (running(source)) return `${source.rate.toFixed(1)} frames/s`;
  return source.summary ? `${source.summary.fps.toFixed(1)} frames/s on average` : "";
}

const running = source => ["live", "running", "reconnecting"].includes(source.state);

function ageOf(source) {
  const ages = source.history.age_ms.filter(age => age !== null);
  return ages.length && running(source) ? `${number(ages.at(-1))} ms old` : "";
}

// A small line of up to sixty readings, the newest at the right.
function spark(values, kind) {
  const ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg");
  svg.setAttribute("class", `spark ${kind}`);
  svg.setAttribute("viewBox", "0 0 59 24");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const most = Math.max(...values, 1e-9), first = 60 - values.length;
  const floor = document.createElementNS(ns, "line");
  for (const [key, value] of Object.entries({ x1: 0, x2: 59, y1: 23.5, y2: 23.5 })) floor.setAttribute(key, value);
  svg.append(floor);
  let run = [];
  const end = () => {
    if (!run.length) return;
    if (run.length === 1) run.push([run[0][0] + .5, run[0][1]]);
    const line = run.map(point => point.join(" ")).join("L");
    for (const [name, path] of [["area", `M${run[0][0]} 23.5L${line}L${run.at(-1)[0]} 23.5Z`], ["", `M${line}`]]) {
      const element = document.createElementNS(ns, "path");
      if (name) element.setAttribute("class", name);
      element.setAttribute("d", path);
      svg.append(element);
    }
    run = [];
  };
  values.forEach((value, i) => {
    if (value === null) end();
    else run.push([first + i, +(23 - 21 * value / most).toFixed(2)]);
  });
  end();
  return svg;
}

function rows(table, pairs) {
  table.replaceChildren(...pairs.map(([name, value]) =>
    make("tr", {}, make("td", { textContent: name }), make("td", { textContent: value }))));
}

function showMinute(source) {
  const { rate, age_ms: ages, lost } = source.history;
  if (!rate.length) return part("minute").replaceChildren();
  const known = ages.filter(age => age !== null), total = lost.reduce((a, b) => a + b, 0);
  const readings = [["Frames per second", running(source) ? source.rate.toFixed(1) : "–", rate, "rate", v => v.toFixed(1)]];
  if (known.length) readings.push(["Age, oldest of a second", `${number(known.at(-1))} ms`, ages, "age", v => `${number(v)} ms`]);
  readings.push(["Lost", number(total), lost, "lost", number]);
  part("minute").replaceChildren(...readings.flatMap(([name, now, values, kind, text]) => {
    const most = Math.max(...values.filter(value => value !== null));
    const line = make("div", { className: "reading", title: `at most ${text(most)} in the last minute` },
      make("span", { className: "soft", textContent: name }), make("span", { textContent: now }));
    return [line, spark(values, kind)];
  }));
}

function showFigures(source, viewers) {
  const { summary } = source;
  const flow = [["Results", number(source.results)], ["Viewers", viewers]];
  if (!summary) {
    for (const id of ["drops", "stages", "use"]) part(id).replaceChildren();
    rows(part("use"), [["Source", source.source]]);
    return rows(part("flow"), flow);
  }
  flow.unshift(["Frames that came", number(summary.frames_in)]);
  flow.splice(2, 0, ["Lost", number(source.lost)], ["Waiting at the network", summary.queued]);
  if (summary.age_ms) {
    const { p50, p95, p99 } = summary.age_ms;
    flow.push(["Age, median", `${number(Math.round(p50))} ms`]);
    flow.push(["Age, 95 · 99 %", `${number(Math.round(p95))} · ${number(Math.round(p99))} ms`]);
    flow.push(["Reconnections", summary.reconnects]);
  }
  if (summary.gate) flow.push(["Frames held", number(summary.held)]);
  rows(part("flow"), flow);
  const lost = Object.entries(summary.drops).map(([reason, count]) => [reason, count ? number(count) : "some"]);
  if (summary.corrupt_frames) lost.push(["picture with errors, used", number(summary.corrupt_frames)]);
  rows(part("drops"), lost.length ? lost : [["nothing", ""]]);
  showStages(summary.stages);
  rows(part("use"), [
    ["Source", source.source],
    ["Decoder", summary.decoder],
    ["Model", summary.model],
    ["Device", `${summary.device}, ${summary.dtype}, batch ${summary.batch}`],
  ]);
}

// In the order of a frame's way, which begins with decoding and ends in the sinks.
function showStages(times) {
  const place = name => ({ decode: -1, track: 1, results: 2, sinks: 3 })[name] || 0;
  const stages = Object.entries(times).sort(([a], [b]) => place(a) - place(b));
  const longest = Math.max(...stages.map(([, each]) => each.p95_ms), 1e-9);
  part("stages").replaceChildren(...stages.flatMap(([name, { p50_ms: median, p95_ms: high }]) => {
    const bar = make("div", { className: "bar" });
    for (const value of [high, median]) {
      const fill = make("i");
      fill.style.width = `${100 * value / longest}%`;
      bar.append(fill);
    }
    const words = `${median.toFixed(1)} · ${high.toFixed(1)}`;
    return [make("div", { className: "stage-time" }, make("span", { textContent: name }), make("span", { textContent: words })), bar];
  }));
}

// Addresses to copy, each with the token, as other programs need them.
function showAddresses(place, paths) {
  const query = new URLSearchParams(location.search).get("token");
  place.replaceChildren(...paths.map(([name, path]) => {
    const url = location.origin + path + (query ? `?token=${encodeURIComponent(query)}` : "");
    const field = make("input", { value: url, readOnly: true, onfocus: () => field.select() });
    field.setAttribute("aria-label", name);
    const button = make("button", { textContent: "Copy", onclick: async () => {
      try {
        await navigator.clipboard.writeText(url);
      } catch {  // only pages of this machine, or by HTTPS, have the clipboard
        field.select();
        document.execCommand("copy");
      }
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } });
    button.setAttribute("aria-label", `Copy ${name}`);
    return make("div", { className: "address" }, make("span", { textContent: name }), field, button);
  }));
}
