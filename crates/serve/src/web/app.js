// The web chat: conversations as trees in localStorage, replies streamed from /v1/chat/completions.
//
// What a model or a file says becomes text nodes and a few known elements, never HTML: there is no innerHTML here.
"use strict";

const $ = (id) => document.getElementById(id);
const PREFIX = "lapis.chat.";
const NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 10);

/** An element with attributes (functions are listeners) and children. */
function h(tag, attrs, ...children) {
  const el = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs || {})) {
    if (typeof value === "function") el.addEventListener(name, value);
    else if (value === true) el.setAttribute(name, "");
    else if (value !== false && value != null) el.setAttribute(name, value);
  }
  el.append(...children.filter((c) => c != null && c !== false));
  return el;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", "#i-" + name);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A button with an icon; `key` finds it again after the thread was drawn anew. */
const iconButton = (name, label, key, click, disabled = false) =>
  h("button", { class: "icon", type: "button", "aria-label": label, title: label, "data-key": key, click, disabled }, icon(name));

// ---- Markdown ----------------------------------------------------------------------------------------------------

const INLINE = new RegExp([
  "(?<!`)(`+)(?!`)([^]*?[^`])\\1(?!`)", // code
  "\\*\\*(?=\\S)([^]*?\\S)\\*\\*(?!\\*)", // bold
  "\\*(?=[^\\s*])([^*]*?[^\\s*])\\*", // italics
  "(?<![\\w_])__(?=\\S)([^]*?\\S)__(?!\\w)",
  "(?<![\\w_])_(?=[^\\s_])([^_]*?[^\\s_])_(?!\\w)",
  "~~(?=\\S)([^~]*?\\S)~~",
  "\\[([^\\]\\n]{1,500})\\]\\(<?([^\\s()<>]{1,2000}(?:\\([^\\s()]{0,200}\\)[^\\s()<>]{0,500})?)>?(?:\\s+\"[^\"\\n]{0,300}\")?\\)",
  "(https?:\\/\\/[^\\s<>()\"'`*]{0,1999}[^\\s<>()\"'`*.,;:!?])",
  "\\\\([!-\\/:-@\\[-`{-~])",
].join("|"), "g");

/** A link that leads to http or https; else its text. */
function link(url, children) {
  let to = null;
  try { to = new URL(url); } catch { /* No address: it stays text. */ }
  if (!to || !/^https?:$/.test(to.protocol)) return h("span", { title: url }, ...children);
  return h("a", { href: to.href, rel: "noopener noreferrer", target: "_blank" }, ...children);
}

function inline(text, depth = 0) {
  if (depth > 6) return [text];
  const out = [];
  const deeper = (part) => inline(part, depth + 1);
  let at = 0;
  for (const m of text.matchAll(INLINE)) {
    if (m.index > at) out.push(text.slice(at, m.index));
    at = m.index + m[0].length;
    if (m[1]) out.push(h("code", null, m[2].replace(/^ (.*[^ ].*) $/, "$1")));
    else if (m[3] ?? m[5]) out.push(h("strong", null, ...deeper(m[3] ?? m[5])));
    else if (m[4] ?? m[6]) out.push(h("em", null, ...deeper(m[4] ?? m[6])));
    else if (m[7]) out.push(h("del", null, ...deeper(m[7])));
    else if (m[8]) out.push(link(m[9], deeper(m[8])));
    else if (m[10]) out.push(link(m[10], [m[10]]));
    else out.push(m[11]);
  }
  if (at < text.length) out.push(text.slice(at));
  return out;
}

function codeBlock(code, language) {
  const copy = iconButton("copy", "Copy the code", null, () => copyText(code, copy));
  return h("div", { class: "block" }, h("div", { class: "top" }, h("span", null, language || "code"), copy),
    h("pre", { tabindex: "0" }, h("code", null, code)));
}

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)]) +(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const HEAD = /^ {0,3}(#{1,6}) +(.*?)(?: +#+)? *$/;
const ALIGN = /^ *\|? *:?-+:? *(\| *:?-+:? *)*\|? *$/;
const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((c) => c.trim().replaceAll("\\|", "|"));

/** The blocks of a text: the source of each and how to build it. */
function blocks(text, depth = 0) {
  const lines = text.replaceAll("\t", "    ").split("\n");
  const out = [];
  let i = 0;
  const isTable = (n) => lines[n].includes("|") && n + 1 < lines.length && lines[n + 1].includes("-") && lines[n + 1].includes("|") && ALIGN.test(lines[n + 1]);
  const starts = (n) => FENCE.test(lines[n]) || HEAD.test(lines[n]) || RULE.test(lines[n]) || /^ {0,3}>/.test(lines[n]) || ITEM.test(lines[n]) || isTable(n);
  while (i < lines.length) {
    const first = i, line = lines[i];
    let build, m;
    if (!line.trim()) { i++; continue; }
    if ((m = line.match(FENCE))) {
      const close = new RegExp("^ {0,3}\\" + m[1][0] + "{" + m[1].length + ",} *$");
      for (i++; i < lines.length && !close.test(lines[i]); i++);
      const code = lines.slice(first + 1, i++).join("\n"), language = m[2].slice(0, 40);
      build = () => codeBlock(code, language);
    } else if ((m = line.match(HEAD))) {
      i++;
      const tag = "h" + Math.min(6, m[1].length + 1), title = m[2];
      build = () => h(tag, null, ...inline(title));
    } else if (RULE.test(line)) {
      i++;
      build = () => h("hr");
    } else if (/^ {0,3}>/.test(line) && depth < 5) {
      while (i < lines.length && /^ {0,3}>/.test(lines[i])) i++;
      const inner = lines.slice(first, i).map((l) => l.replace(/^ {0,3}> ?/, "")).join("\n");
      build = () => h("blockquote", null, ...blocks(inner, depth + 1).map((b) => b.build()));
    } else if (isTable(i)) {
      for (i += 2; i < lines.length && lines[i].includes("|"); i++);
      const rows = [line, ...lines.slice(first + 2, i)].map(cells);
      const sides = cells(lines[first + 1]).map((c) => (/^:-+:$/.test(c) ? "center" : /-:$/.test(c) ? "right" : null));
      const row = (r, tag) => h("tr", null, ...rows[0].map((_, n) => h(tag, { class: sides[n] }, ...inline(r[n] ?? ""))));
      build = () => h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, h("table", null,
        h("thead", null, row(rows[0], "th")), h("tbody", null, ...rows.slice(1).map((r) => row(r, "td")))));
    } else if ((m = line.match(ITEM)) && depth < 8) {
      const ordered = /\d/.test(m[2]), indent = m[1].length, items = [];
      for (; i < lines.length; i++) {
        const item = lines[i].match(ITEM);
        if (item && item[1].length <= indent + 1) {
          if (item[1].length < indent || /\d/.test(item[2]) !== ordered) break;
          items.push([item[3]]);
        } else if (lines[i].trim()) {
          const deep = lines[i].match(/^ */)[0].length;
          if (deep <= indent && (!lines[i - 1].trim() || starts(i))) break;
          items.at(-1).push(lines[i].slice(Math.min(deep, indent + m[2].length + 1)));
        } else items.at(-1).push("");
      }
      const start = ordered && m[2] !== "1." ? parseInt(m[2], 10) : null;
      build = () => h(ordered ? "ol" : "ul", { start }, ...items.map((lines) => {
        const parts = blocks(lines.join("\n"), depth + 1).map((b) => b.build());
        return h("li", null, ...parts.flatMap((p, n) => (n === 0 && p.tagName === "P" ? [...p.childNodes] : [p])));
      }));
    } else {
      for (i++; i < lines.length && lines[i].trim() && !starts(i); i++);
      const words = lines.slice(first, i).join("\n").trim();
      build = () => h("p", null, ...inline(words));
    }
    out.push({ source: lines.slice(first, i).join("\n") + (i < lines.length ? "\n" : ""), build });
  }
  return out;
}

/** Draws a text into an element, and leaves the blocks that did not change. */
function draw(el, text) {
  const now = blocks(text), before = el.sources || [];
  let same = 0;
  while (same < now.length && before[same] === now[same].source) same++;
  while (el.children.length > same) el.lastElementChild.remove();
  el.append(...now.slice(same).map((b) => b.build()));
  el.sources = now.map((b) => b.source);
}

// ---- Conversations -----------------------------------------------------------------------------------------------

/** A conversation: nodes by id; the root is "", and each node knows its children and which of them is shown. */
const newChat = () => ({ id: newId(), title: "", updated: Date.now(), model: last.model, settings: { ...last.settings },
  nodes: { "": { id: "", children: [], pick: 0 } } });

const text = (value, most = 4e6) => (typeof value === "string" ? value.slice(0, most) : "");

function cleanSettings(from) {
  const out = { system: text(from?.system, 2e5) };
  for (const key of NUMBERS) out[key] = /^-?[\d.]+(e-?\d+)?$/.test(from?.[key] ?? "") ? text(from[key], 20) : "";
  return out;
}

/** A conversation from outside in the shape that is used here, or null. */
function cleanChat(from) {
  if (!from || typeof from !== "object" || !from.nodes?.[""]) return null;
  const chat = { id: /^[a-z0-9]{8,40}$/.test(from.id) ? from.id : newId(), title: text(from.title, 200), updated: +from.updated || Date.now(),
    model: text(from.model, 300), settings: cleanSettings(from.settings), nodes: {} };
  const todo = [["", null]];
  while (todo.length) {
    const [id, parent] = todo.pop(), old = from.nodes[id];
    const node = parent === null ? { id: "" } : { id, parent, role: old.role, content: text(old.content), time: +old.time || 0 };
    if (node.role === "assistant") {
      Object.assign(node, { reasoning: text(old.reasoning), model: text(old.model, 300), finish: text(old.finish, 30), error: text(old.error, 2000) });
      node.calls = (Array.isArray(old.calls) ? old.calls : []).slice(0, 100).map((c) => ({ name: text(c?.name, 300), arguments: text(c?.arguments) }));
      if (old.stats && typeof old.stats === "object") {
        node.stats = { seed: text(old.stats.seed, 24) };
        for (const key of ["prompt", "tokens", "thought", "rate", "first"]) node.stats[key] = +old.stats[key] || 0;
      }
    }
    chat.nodes[id] = node;
    const fits = (c) => /^[a-z0-9]{8,40}$/.test(c) && !Object.hasOwn(chat.nodes, c) && /^(user|assistant)$/.test(from.nodes[c]?.role);
    node.children = [...new Set(Array.isArray(old.children) ? old.children : [])].filter(fits);
    node.pick = Math.max(0, Math.min(node.children.length - 1, old.pick | 0));
    for (const child of node.children) todo.push([child, id]);
  }
  return chat;
}

const last = { model: "", settings: cleanSettings(null) };
const chats = new Map();
const runs = new Map(); // conversation id → the node that is being written and its AbortController
let chat; // the one that is shown
let views = new Map(); // node id → what draws it
let editing = null;

function store(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    notice("This browser's storage is full or closed: export what matters.");
  }
}

function stored(key) {
  try { return JSON.parse(localStorage.getItem(key)); } catch { return null; }
}

function save(c) {
  if (!c.nodes[""].children.length) return;
  chats.set(c.id, c);
  store(PREFIX + c.id, c);
}

function load() {
  chats.clear();
  let keys = [];
  try { keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)); } catch { /* Storage is closed. */ }
  for (const key of keys) {
    const c = cleanChat(stored(key));
    if (c) chats.set(c.id, c);
  }
}

function addNode(c, parent, fields) {
  const node = { id: newId(), parent, children: [], pick: 0, content: "", time: Date.now(), ...fields };
  c.nodes[node.id] = node;
  c.nodes[parent].pick = c.nodes[parent].children.push(node.id) - 1;
  c.updated = Date.now();
  return node;
}

/** The nodes that are shown, first to last; up to `end` if given. */
function path(c, end) {
  const out = [];
  if (end !== undefined) for (let n = c.nodes[end]; n.id; n = c.nodes[n.parent]) out.unshift(n);
  else for (let n = c.nodes[""]; (n = c.nodes[n.children[n.pick]]);) out.push(n);
  return out;
}

// ---- The server --------------------------------------------------------------------------------------------------

const getKey = () => { try { return sessionStorage.getItem("lapis.key") || ""; } catch { return heldKey; } };
let heldKey = "", asking = null;

function setKey(key) {
  heldKey = key;
  try { key ? sessionStorage.setItem("lapis.key", key) : sessionStorage.removeItem("lapis.key"); } catch { /* Held until the page goes. */ }
  $("forget").hidden = !key;
}

/** Asks for a key; true when one was given. */
function askKey(wasWrong) {
  return asking ??= new Promise((done) => {
    const dialog = $("key-dialog");
    $("key-note").textContent = wasWrong ? "That key was not taken. Try another." : "It is kept until this tab closes.";
    $("key-note").classList.toggle("bad", wasWrong);
    $("key").value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => { asking = null; done(dialog.returnValue === "given"); }, { once: true });
    dialog.showModal();
  });
}

async function ask(url, options = {}) {
  for (;;) {
    const key = getKey();
    let answer;
    try {
      answer = await fetch(url, { ...options, headers: { ...options.headers, ...(key && { Authorization: "Bearer " + key }) } });
    } catch (e) {
      if (e.name === "AbortError") throw e;
      throw new Error("The server does not answer.");
    }
    if (answer.ok) return answer;
    if (answer.status === 401) {
      if (key !== getKey() || (await askKey(key !== ""))) {
        options.signal?.throwIfAborted();
        continue;
      }
      throw new Error("The server asks for a key.");
    }
    const body = await answer.json().catch(() => null);
    throw new Error(text(body?.error?.message, 2000) || `The server answered ${answer.status}.`);
  }
}

let models = null;
async function loadModels() {
  try {
    const list = (await (await ask("/v1/models")).json()).data;
    models = list.map((m) => text(m.id, 300)).filter(Boolean);
  } catch { models = null; }
  drawModels();
}

function drawModels() {
  const names = models?.length ? [...models] : [];
  if (chat.model && !names.includes(chat.model)) names.unshift(chat.model);
  if (!names.length) names.push("");
  $("model").replaceChildren(...names.map((name) => h("option", { value: name }, name || "default model")));
  $("model").value = chat.model || names[0];
}

/** The body of a request. The seed is written as digits, for numbers of JavaScript hold 53 bits. */
function requestBody(c, node) {
  const messages = [];
  if (c.settings.system.trim()) messages.push({ role: "system", content: c.settings.system });
  for (const n of path(c, node.parent)) {
    const before = messages.at(-1);
    if (n.role === "assistant" && !n.content) continue;
    if (before?.role === n.role) before.content += "\n\n" + n.content;
    else messages.push({ role: n.role, content: n.content });
  }
  const body = { messages, stream: true, stream_options: { include_usage: true } };
  if (node.model) body.model = node.model;
  for (const key of NUMBERS) if (key !== "seed" && c.settings[key] !== "") body[key] = Number(c.settings[key]);
  const seed = c.settings.seed;
  return JSON.stringify(body).slice(0, -1) + (/^-?\d+$/.test(seed) ? `,"seed":${BigInt(seed)}}` : "}");
}

/** The data of server-sent events, one at a time. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = done ? "" : lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    if (done) return;
  }
}

function take(node, data, times) {
  const event = JSON.parse(data);
  if (event.error) throw new Error(text(event.error.message, 2000) || "The server broke the reply off.");
  const choice = event.choices?.[0], delta = choice?.delta ?? {};
  const thought = text(delta.reasoning_content ?? delta.reasoning), said = text(delta.content);
  if (thought || said) { times.first ??= performance.now(); times.pieces++; times.last = performance.now(); }
  node.reasoning += thought;
  node.content += said;
  for (const part of delta.tool_calls ?? []) {
    const call = (node.calls[part.index ?? 0] ??= { name: "", arguments: "" });
    call.name += text(part.function?.name);
    call.arguments += text(part.function?.arguments);
  }
  if (choice?.finish_reason) node.finish = text(choice.finish_reason, 30);
  if (event.usage) {
    const t = event.timings ?? {};
    const spent = (times.last - times.first) / 1000;
    node.stats = { prompt: event.usage.prompt_tokens, tokens: event.usage.completion_tokens,
      thought: event.usage.completion_tokens_details?.reasoning_tokens || 0, first: t.ttft_ms ?? (times.first ? times.first - times.began : 0),
      rate: t.decode_tps ?? (spent > 0 ? (event.usage.completion_tokens - 1) / spent : 0), seed: data.match(/"seed":\s*(-?\d+)/)?.[1] ?? "" };
  }
}

/** Streams a reply into a node. */
async function run(c, node) {
  stop(c);
  const control = new AbortController();
  runs.set(c.id, { node, control });
  Object.assign(node, { content: "", reasoning: "", calls: [], finish: "stopped", error: "", stats: undefined });
  save(c);
  drawAll(true);
  let planned = 0, saved = Date.now();
  const update = () => {
    planned ||= requestAnimationFrame(() => {
      planned = 0;
      const stick = atEnd();
      views.get(node.id)?.();
      if (stick) toEnd();
    });
    if (Date.now() - saved > 3000) { saved = Date.now(); save(c); }
  };
  try {
    const times = { began: performance.now(), pieces: 0 };
    const answer = await ask("/v1/chat/completions", { method: "POST", signal: control.signal, body: requestBody(c, node),
      headers: { "Content-Type": "application/json" } });
    let whole = false;
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") { whole = true; break; }
      take(node, data, times);
      update();
    }
    if (!whole) throw new Error("The connection ended before the reply did.");
  } catch (e) {
    node.finish = "stopped";
    if (!control.signal.aborted) node.error = e instanceof SyntaxError ? "The server's answer could not be read." : e.name === "TypeError" ? "The connection broke." : e.message;
  }
  cancelAnimationFrame(planned);
  if (runs.get(c.id)?.control === control) runs.delete(c.id);
  if (chats.has(c.id)) save(c);
  const stick = atEnd();
  views.get(node.id)?.();
  if (stick) toEnd();
  drawList();
  drawSend();
  if (c === chat) say(node.error ? "The reply failed: " + node.error : (node.finish === "stopped" ? "Stopped. " : "Reply: ") + node.content.slice(0, 1200));
}

function stop(c = chat) {
  runs.get(c.id)?.control.abort();
}

function answerTo(c, user) {
  return run(c, addNode(c, user, { role: "assistant", model: $("model").value }));
}

function send(words, parent) {
  if (!words.trim()) return;
  const c = chat;
  parent ??= path(c).at(-1)?.id ?? "";
  c.title ||= words.trim().replace(/\s+/g, " ").slice(0, 70);
  const user = addNode(c, parent, { role: "user", content: words });
  editing = null;
  answerTo(c, user.id);
  toEnd();
}

// ---- The thread --------------------------------------------------------------------------------------------------

const atEnd = () => $("scroll").scrollHeight - $("scroll").scrollTop - $("scroll").clientHeight < 60;
const toEnd = () => { $("scroll").scrollTop = $("scroll").scrollHeight; };
const say = (words) => { $("spoken").textContent = words; };

function switcher(node) {
  const parent = chat.nodes[node.parent], count = parent.children.length, at = parent.children.indexOf(node.id);
  if (count < 2) return [];
  const go = (by) => () => { parent.pick = at + by; save(chat); drawAll(); };
  return [iconButton("prev", "Earlier version", node.parent + ":prev", go(-1), at === 0),
    h("span", { class: "count" }, h("span", { class: "hidden" }, "Version "), `${at + 1} / ${count}`),
    iconButton("next", "Later version", node.parent + ":next", go(1), at === count - 1)];
}

function userView(node) {
  if (editing === node.id) return editor(node);
  const copy = iconButton("copy", "Copy", node.id + ":copy", () => copyText(node.content, copy));
  const edit = iconButton("edit", "Edit", node.id + ":edit", () => { editing = node.id; drawAll(); });
  const turns = switcher(node);
  return h("article", { class: "user", "aria-label": "You" }, h("div", { class: "text" }, node.content),
    h("div", { class: turns.length ? "tools many" : "tools" }, copy, edit, ...turns));
}

function editor(node) {
  const area = h("textarea", { rows: Math.min(12, node.content.split("\n").length + 1), "aria-label": "Edit the message", "data-key": node.id + ":area" });
  area.value = node.content;
  const cancel = () => { editing = null; drawAll(); focusKey(node.id + ":edit"); };
  const done = () => {
    if (!area.value.trim() || area.value === node.content) return cancel();
    send(area.value, node.parent);
    $("prompt").focus();
  };
  area.addEventListener("keydown", (e) => {
    if (e.key === "Escape") { e.stopPropagation(); cancel(); }
    if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); done(); }
  });
  queueMicrotask(() => { if (area.isConnected && document.activeElement !== area) area.focus(); });
  return h("article", { class: "user editing", "aria-label": "You, editing" }, area, h("div", { class: "row end" },
    h("button", { class: "quiet", type: "button", click: cancel }, "Cancel"), h("button", { class: "main", type: "button", click: done }, "Send")));
}

const round = (n) => (n >= 100 ? Math.round(n) : Math.round(n * 10) / 10).toLocaleString("en");

function stats(node) {
  const s = node.stats, out = [];
  if (s) {
    out.push(`${s.tokens.toLocaleString("en")} ${s.tokens === 1 ? "token" : "tokens"}`);
    if (s.rate) out.push(`${round(s.rate)} tokens/s`);
  }
  if (node.finish === "length") out.push("cut at the limit");
  if (node.finish === "stopped" && !node.error) out.push("stopped");
  return out.join(" · ");
}

function details(node) {
  const s = node.stats;
  if (!s) return null;
  return [`Prompt: ${s.prompt} tokens`, s.thought && `Thinking: ${s.thought} tokens`, s.first && `First token after ${round(s.first)} ms`, s.seed && `Seed: ${s.seed}`].filter(Boolean).join("\n");
}

function pretty(json) {
  try { return JSON.stringify(JSON.parse(json), null, 2); } catch { return json; }
}

function assistantView(node) {
  const c = chat;
  const thought = h("div", { class: "inside md" }), summary = h("summary", null, "Thoughts"), thinking = h("details", { hidden: true }, summary, thought);
  const body = h("div", { class: "md" }), calls = h("div", { class: "calls" }), fault = h("div"), tools = h("div", { class: "tools" });
  const waiting = h("div", { class: "waiting", role: "img", "aria-label": "Waiting for the reply" }, h("i"), h("i"), h("i"));
  const el = h("article", { class: "assistant", "aria-label": node.model ? "Reply of " + node.model : "Reply" },
    h("div", { class: "who" }, node.model || "Reply"), thinking, body, calls, waiting, fault, tools);
  const again = () => {
    if (node.error && !node.content && !node.calls.length) {
      node.model = $("model").value;
      run(c, node);
    } else answerTo(c, node.parent);
  };
  const update = () => {
    const running = runs.get(c.id)?.node === node;
    thinking.hidden = !node.reasoning;
    summary.textContent = running && !node.content ? "Thinking…" : "Thoughts";
    if (node.reasoning) draw(thought, node.reasoning);
    draw(body, node.content);
    calls.replaceChildren(...node.calls.filter(Boolean).map((call) => h("details", { open: true }, h("summary", null, "Calls ", h("strong", null, call.name)),
      h("pre", { tabindex: "0" }, pretty(call.arguments)))));
    waiting.hidden = !running || node.content !== "";
    el.setAttribute("aria-busy", String(running));
    fault.className = node.error ? "error" : "";
    fault.replaceChildren(...(node.error ? [h("span", null, node.error), h("button", { type: "button", "data-key": node.id + ":retry", click: again }, "Try again")] : []));
    tools.replaceChildren();
    if (running) return;
    const copy = iconButton("copy", "Copy the reply", node.id + ":copy", () => copyText(node.content, copy));
    if (node.content) tools.append(copy);
    tools.append(iconButton("again", "Answer again", node.id + ":again", again), ...switcher(node),
      node.stats ? h("button", { class: "stats", type: "button", title: details(node), click: () => notice(details(node).replaceAll("\n", " · ")) }, stats(node))
        : h("span", { class: "stats" }, stats(node)));
  };
  update();
  views.set(node.id, update);
  return el;
}

function emptyView() {
  const ideas = ["Tell me a story about a fox", "Explain how tides work", "Write a haiku about stone"];
  const gem = document.querySelector(".brand .gem").cloneNode(true);
  return h("div", { class: "empty" }, gem, h("h2", null, "What shall we talk about?"),
    h("div", { class: "ideas" }, ...ideas.map((idea) => h("button", { type: "button", click: () => { send(idea); $("prompt").focus(); } }, idea))));
}

function focusKey(key) {
  const all = [...$("thread").querySelectorAll("[data-key]")], found = all.find((el) => el.dataset.key === key);
  // At the first or last version the arrow is off: the other one takes the focus.
  const other = key.replace(/prev$|next$/, (way) => (way === "prev" ? "next" : "prev"));
  (found?.disabled ? all.find((el) => el.dataset.key === other) : found)?.focus();
}

function drawAll(end = false) {
  const key = document.activeElement?.dataset?.key, at = $("scroll").scrollTop;
  const shown = path(chat);
  views = new Map();
  $("thread").replaceChildren(...(shown.length ? shown.map((n) => (n.role === "user" ? userView(n) : assistantView(n))) : [emptyView()]));
  if (key) focusKey(key);
  $("scroll").scrollTop = at;
  if (end) toEnd();
  $("title").textContent = chat.title || "New conversation";
  document.title = chat.title ? chat.title + " · lapis" : "lapis";
  drawList();
  drawSend();
}

function drawSend() {
  const running = runs.has(chat.id), button = $("send");
  button.disabled = !running && !$("prompt").value.trim();
  if (button.dataset.running === String(running)) return;
  button.dataset.running = String(running);
  button.setAttribute("aria-label", running ? "Stop" : "Send");
  button.title = running ? "Stop (Esc)" : "Send";
  button.replaceChildren(icon(running ? "stop" : "send"));
}

// ---- The list ----------------------------------------------------------------------------------------------------

let renaming = null;
function drawList() {
  if (renaming && $("chats").querySelector("input")) return;
  const wanted = $("search").value.trim().toLowerCase();
  const fits = (c) => !wanted || c.title.toLowerCase().includes(wanted) || Object.values(c.nodes).some((n) => n.content?.toLowerCase().includes(wanted));
  const found = [...chats.values()].filter(fits).sort((a, b) => b.updated - a.updated);
  const key = $("chats").contains(document.activeElement) ? document.activeElement.dataset.key : null;
  $("chats").replaceChildren(...found.map((c) => {
    const title = c.title || "Untitled";
    if (renaming === c.id) return h("li", { class: "now" }, renamer(c));
    return h("li", { class: c === chat && "now" },
      h("button", { class: "open", type: "button", title, "aria-current": c === chat && "true", "data-key": c.id, click: () => { show(c); closeSide(); } }, title),
      iconButton("edit", "Rename " + title, c.id + ":rename", () => { renaming = c.id; drawList(); $("chats").querySelector("input").select(); }),
      iconButton("bin", "Delete " + title, c.id + ":delete", () => remove(c)));
  }));
  $("no-chats").hidden = found.length > 0;
  $("no-chats").textContent = wanted ? "Nothing found." : "Conversations appear here.";
  if (key) for (const el of $("chats").querySelectorAll("[data-key]")) if (el.dataset.key === key) el.focus();
}

function renamer(c) {
  const input = h("input", { "aria-label": "New name", maxlength: 200 });
  input.value = c.title;
  const done = (keep) => {
    if (renaming !== c.id) return;
    renaming = null;
    if (keep && input.value.trim()) { c.title = input.value.trim(); save(c); }
    input.remove();
    drawAll();
  };
  input.addEventListener("blur", () => done(true));
  input.addEventListener("keydown", (e) => {
    if (e.isComposing || (e.key !== "Enter" && e.key !== "Escape")) return;
    e.stopPropagation();
    done(e.key === "Enter");
    for (const el of $("chats").querySelectorAll("[data-key]")) if (el.dataset.key === c.id) el.focus();
  });
  return input;
}

function remove(c) {
  stop(c);
  chats.delete(c.id);
  try { localStorage.removeItem(PREFIX + c.id); } catch { /* It was never stored. */ }
  if (c === chat) show(newChat()); else drawList();
  $("new").focus();
  notice("Deleted.", "Undo", () => { save(c); show(c); });
}

function show(c) {
  chat = c;
  editing = null;
  say("");
  for (const key of ["system", ...NUMBERS]) $(key).value = c.settings[key];
  drawModels();
  drawAll(true);
}

// ---- Files, clipboard, notices -----------------------------------------------------------------------------------

async function copyText(words, button) {
  let done = false;
  try {
    await navigator.clipboard.writeText(words);
    done = true;
  } catch { // Pages of plain http have no clipboard.
    const area = h("textarea", { class: "hidden", "aria-hidden": "true" });
    area.value = words;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  if (!done) return notice("The browser did not let it be copied.");
  button.replaceChildren(icon("done"));
  say("Copied.");
  setTimeout(() => button.replaceChildren(icon("copy")), 1400);
}

function exportAll() {
  const data = JSON.stringify({ format: "lapis-chat", version: 1, chats: [...chats.values()] }, null, 1);
  const url = URL.createObjectURL(new Blob([data], { type: "application/json" }));
  h("a", { href: url, download: `lapis-chats-${new Date().toISOString().slice(0, 10)}.json` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

async function importFile(file) {
  let found = [];
  try {
    const data = JSON.parse(await file.text());
    if (data?.format === "lapis-chat" && Array.isArray(data.chats)) found = data.chats.map(cleanChat).filter(Boolean);
  } catch { /* It is said below. */ }
  const fresh = found.filter((c) => !chats.has(c.id) || JSON.stringify(cleanChat(chats.get(c.id))) !== JSON.stringify(c));
  for (const c of fresh) {
    if (chats.has(c.id)) c.id = newId();
    save(c);
  }
  drawList();
  notice(!found.length ? "This file holds no conversations of this chat." : !fresh.length ? "All of them are here already."
    : `Imported ${fresh.length} ${fresh.length === 1 ? "conversation" : "conversations"}.`);
}

let noticeTimer;
function notice(words, label, click) {
  clearTimeout(noticeTimer);
  $("notice").hidden = false;
  $("notice").replaceChildren(h("span", null, words), label ? h("button", { type: "button", click: () => { $("notice").hidden = true; click(); } }, label) : "");
  noticeTimer = setTimeout(() => { $("notice").hidden = true; }, label ? 8000 : 4500);
}

// ---- The page ----------------------------------------------------------------------------------------------------

const small = matchMedia("(max-width: 760px)"), middle = matchMedia("(max-width: 1080px)");
const drawShade = () => { $("shade").hidden = !((small.matches && document.body.classList.contains("side")) || (middle.matches && !$("tune").hidden)); };

function closeSide() {
  if (!document.body.classList.contains("side")) return false;
  document.body.classList.remove("side");
  drawShade();
  $("side-open").focus();
  return true;
}

function toggleTune(open = $("tune").hidden) {
  $("tune").hidden = !open;
  $("tune-open").setAttribute("aria-expanded", String(open));
  drawShade();
  (open ? $("system") : $("tune-open")).focus();
}

function grow() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = $("prompt").scrollHeight + "px";
  drawSend();
}

function submit() {
  if (runs.has(chat.id) || !$("prompt").value.trim()) return;
  const words = $("prompt").value;
  $("prompt").value = "";
  grow();
  send(words);
}

function listen() {
  $("composer").addEventListener("submit", (e) => { e.preventDefault(); if (runs.has(chat.id)) stop(); else submit(); $("prompt").focus(); });
  $("prompt").addEventListener("input", grow);
  $("prompt").addEventListener("keydown", (e) => { if (e.key === "Enter" && !e.shiftKey && !e.isComposing) { e.preventDefault(); submit(); } });
  document.addEventListener("keydown", (e) => {
    if (e.key !== "Escape" || e.defaultPrevented || $("key-dialog").open) return;
    if (closeSide()) return;
    if (middle.matches && !$("tune").hidden) return toggleTune(false);
    stop();
  });
  $("new").addEventListener("click", () => { show(newChat()); closeSide(); $("prompt").focus(); });
  $("search").addEventListener("input", drawList);
  $("side-open").addEventListener("click", () => {
    if (!small.matches) {
      document.body.classList.toggle("no-side");
      return;
    }
    document.body.classList.add("side");
    drawShade();
    $("side-close").focus();
  });
  $("side-close").addEventListener("click", closeSide);
  $("shade").addEventListener("click", () => { if (!closeSide()) toggleTune(false); });
  for (const query of [small, middle]) query.addEventListener("change", drawShade);
  $("tune-open").addEventListener("click", () => toggleTune());
  $("tune-close").addEventListener("click", () => toggleTune(false));
  const settled = () => { last.settings = { ...chat.settings }; last.model = chat.model; store("lapis.last", last); save(chat); };
  for (const key of ["system", ...NUMBERS]) {
    $(key).addEventListener("change", () => { if ($(key).checkValidity()) { chat.settings[key] = $(key).value.trim(); settled(); } });
  }
  $("reset").addEventListener("click", () => { chat.settings = cleanSettings(null); settled(); for (const key of ["system", ...NUMBERS]) $(key).value = ""; });
  $("model").addEventListener("change", () => { chat.model = $("model").value; settled(); });
  $("model").addEventListener("focus", () => { if (!models) loadModels(); });
  $("export").addEventListener("click", exportAll);
  $("import").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => { if ($("file").files[0]) importFile($("file").files[0]); $("file").value = ""; });
  $("forget").addEventListener("click", () => { setKey(""); notice("The key is forgotten."); });
  $("key-form").addEventListener("submit", (e) => { e.preventDefault(); setKey($("key").value.trim()); $("key-dialog").close("given"); if (!models) loadModels(); });
  $("key-cancel").addEventListener("click", () => $("key-dialog").close(""));
  addEventListener("pagehide", () => { for (const id of runs.keys()) if (chats.has(id)) save(chats.get(id)); });
  addEventListener("storage", (e) => { // Another tab wrote.
    if (!e.key?.startsWith(PREFIX)) return;
    const id = e.key.slice(PREFIX.length), c = cleanChat(stored(e.key));
    if (runs.has(id)) return;
    if (c) chats.set(id, c); else chats.delete(id);
    if (id === chat.id && c && !editing) { chat = c; drawAll(); } else drawList();
  });
}

const kept = stored("lapis.last");
last.model = text(kept?.model, 300);
last.settings = cleanSettings(kept?.settings);
load();
listen();
$("forget").hidden = !getKey();
show(newChat());
loadModels();
if (!small.matches) $("prompt").focus();
