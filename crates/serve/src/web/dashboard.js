// The dashboard: asks /dashboard.json every second, and makes rates of counters. The key is the chat's.
"use strict";

const $ = (id) => document.getElementById(id);
const KEPT = 120; // moments that are drawn
const SVG = "http://www.w3.org/2000/svg";
let before = null, paused = false, timer = 0;
const moments = { out: [], in: [] };
const waits = { first: [], between: [] }; // counters of the last moments, for means over a minute

const whole = (n) => Math.round(n).toLocaleString("en");
const short = (n) => (n >= 100 || Number.isInteger(n) ? whole(n) : n.toFixed(n >= 10 ? 1 : 2));

function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (n >= 1000 && at < units.length - 1) { n /= 1024; at++; }
  return (at && n < 100 ? n.toFixed(1) : Math.round(n)) + " " + units[at];
}

function count(n) {
  if (n >= 1e9) return (n / 1e9).toFixed(1) + " B";
  return n >= 1e6 ? (n / 1e6).toFixed(1) + " M" : whole(n);
}

function span(seconds) {
  const s = Math.floor(seconds), parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = Math.max(0, parts.findIndex(([size]) => s >= size)), [[size, unit], next] = [parts[at], parts[at + 1]];
  if (s < 1) return "0 s";
  const rest = next ? Math.floor((s % size) / next[0]) : 0;
  return `${Math.floor(s / size)} ${unit}${rest ? ` ${rest} ${next[1]}` : ""}`;
}

function put(id, words) {
  if ($(id).textContent !== words) $(id).textContent = words;
}

function meter(id, value, most) {
  $(id).setAttribute("aria-valuemax", most);
  $(id).setAttribute("aria-valuenow", Math.min(value, most));
  $(id).firstChild.style.width = (most > 0 ? Math.min(100, (value / most) * 100) : 0) + "%";
}

/** A line of values, from 0 to the greatest of them. */
function draw(id, values) {
  const most = Math.max(...values, 1e-9), step = 240 / (KEPT - 1), left = 240 - step * (values.length - 1);
  const points = values.map((v, i) => `${(left + i * step).toFixed(1)},${(58 - (v / most) * 54).toFixed(1)}`);
  const area = document.createElementNS(SVG, "polygon"), line = document.createElementNS(SVG, "polyline");
  area.setAttribute("class", "area");
  area.setAttribute("points", [`${left.toFixed(1)},60`, ...points, "240,60"].join(" "));
  line.setAttribute("class", "line");
  line.setAttribute("points", points.join(" "));
  $(id).replaceChildren(area, line);
}

function row(cells, bad = false) {
  const tr = document.createElement("tr");
  for (const [i, cell] of cells.entries()) {
    const td = document.createElement("td");
    td.textContent = cell;
    if (bad && i > 0) td.className = "bad";
    tr.append(td);
  }
  return tr;
}

/** The mean of the last minute in milliseconds, and of all time. */
function wait(name, times) {
  const past = waits[name];
  past.push(times);
  if (past.length > 60) past.shift();
  const n = times.count - past[0].count, lately = n > 0 ? ((times.seconds - past[0].seconds) / n) * 1000 : null;
  const ever = times.count ? (times.seconds / times.count) * 1000 : null;
  put(name, lately ?? ever ? short(lately ?? ever) : "–");
  put(name + "-note", ever === null ? "nothing yet" : lately === null ? "since the start" : `mean of the last minute; ${short(ever)} ms since the start`);
}

function rate(name, now) {
  moments[name].push(now);
  if (moments[name].length > KEPT) moments[name].shift();
  put(name, short(Math.round(now * 10) / 10));
  draw(name + "-line", moments[name]);
}

function show(now) {
  const { queue, batch, tokens, cache, memory, times } = now;
  put("state", now.state);
  $("state").classList.toggle("bad", now.state !== "ready");
  put("uptime", `up ${span(now.uptime)} · version ${now.version}`);
  if (before && now.uptime < before.uptime) before = null; // It was started anew.
  const passed = before ? now.uptime - before.uptime : 0;
  const per = (key) => (passed > 0 ? (tokens[key] - before.tokens[key]) / passed : 0);
  rate("out", per("output"));
  rate("in", per("prompt"));
  const peak = (name) => short(Math.round(Math.max(...moments[name]) * 10) / 10);
  put("out-note", `${whole(tokens.output)} since the start${tokens.guessed ? `, ${whole(tokens.guessed)} of them guessed` : ""} · at most ${peak("out")} per second in the last 2 minutes`);
  put("in-note", `${whole(tokens.prompt)} since the start · at most ${peak("in")} per second in the last 2 minutes`);

  put("batch", whole(batch.running));
  put("batch-of", `of ${whole(batch.limit)} replies`);
  meter("batch-meter", batch.running, batch.limit);
  const steps = times.step;
  put("batch-note", steps.count ? `a step takes ${short((steps.seconds / steps.count) * 1000)} ms on average` : "nothing computed yet");
  put("queue", whole(queue.jobs + queue.waiting));
  put("queue-of", `waiting, ${whole(queue.limit)} may`);
  meter("queue-meter", queue.jobs, queue.limit);
  put("queue-note", `${times.queue.count ? `${short((times.queue.seconds / times.queue.count) * 1000)} ms of waiting on average` : "nobody has waited"} · ${whole(now.connections)} ${now.connections === 1 ? "connection" : "connections"}`);
  put("memory", bytes(memory.used));
  put("memory-of", `of ${bytes(memory.limit)}`);
  meter("memory-meter", memory.used, memory.limit);
  put("memory-note", `${bytes(memory.reserved)} reserved for what runs`);
  const known = tokens.prompt ? tokens.cached / tokens.prompt : 0;
  put("cache", Math.round(known * 100) + " %");
  meter("cache-meter", known, 1);
  put("cache-note", `${whole(cache.entries)} prompts, ${bytes(cache.bytes)} · ${whole(cache.hits)} hits, ${whole(cache.misses)} misses, ${whole(cache.evictions)} let go`);
  wait("first", times.first);
  wait("between", times.between);

  $("models").replaceChildren(...(now.models.length ? now.models.map((m) => row([m.id, count(m.parameters), bytes(m.bytes), whole(m.context), whole(m.jobs)]))
    : [row(["none", "", "", "", ""])]));
  const answers = [...now.requests].sort((a, b) => b.count - a.count);
  $("requests").replaceChildren(...(answers.length ? answers : [{ route: "none", status: "", count: 0 }]).map((r) => row([r.route, r.status, whole(r.count)], r.status >= 500)));
  put("requests-note", `${whole(now.cancelled)} cancelled by their clients · ${whole(now.refused)} refused as too many · ${whole(now.faults)} faults`);
  before = now;
}

const getKey = () => { try { return sessionStorage.getItem("lapis.key") || ""; } catch { return heldKey; } };
let heldKey = "";

function fault(words) {
  $("fault").hidden = !words;
  if (words) put("fault", words);
}

async function ask() {
  clearTimeout(timer);
  const key = getKey();
  let again = 1000;
  try {
    const answer = await fetch("/dashboard.json", { headers: key ? { Authorization: "Bearer " + key } : {} });
    if (answer.status === 401) {
      $("numbers").hidden = true;
      if (key) put("key-note", "That key was not taken. Try another.");
      put("state", "locked");
      $("key-form").hidden = false;
      $("key").focus();
      return;
    }
    const body = await answer.json();
    if (!answer.ok) throw new Error(body?.error?.message || `The server answered ${answer.status}.`);
    $("numbers").hidden = false;
    fault("");
    show(body);
  } catch (e) {
    const gone = e instanceof TypeError;
    put("state", gone ? "no answer" : "fault");
    $("state").classList.add("bad");
    fault(gone ? "The server does not answer." : e.message);
    again = 3000;
  }
  // A page that nobody sees asks no more.
  if (!paused && !document.hidden) timer = setTimeout(ask, again);
}

$("key-form").addEventListener("submit", (e) => {
  e.preventDefault();
  heldKey = $("key").value.trim();
  try { sessionStorage.setItem("lapis.key", heldKey); } catch { /* Held until the page goes. */ }
  $("key").value = "";
  $("key-form").hidden = true;
  ask();
});
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  put("pause", paused ? "Go on" : "Pause");
  if (paused) clearTimeout(timer); else ask();
});
document.addEventListener("visibilitychange", () => { if (!document.hidden && !paused && $("key-form").hidden) ask(); });
ask();
