"use strict";

const demo = document.querySelector("meta[name=demo]").dataset;
const cards = [...document.querySelectorAll(".card")];
const ids = cards.map((card) => card.dataset.node);
const $ = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

const PACE = 2000, FAST_PACE = 150, FAST_FOR = 8000; // between two writes; after a button was pressed
const PATIENCE = 6000; // for an answer to one attempt
const SLOTS = 3; // writes under way at once: of a browser's six connections to a host, the others are for the stream, the ledger and the buttons
const TRY_FOR = 30000; // how long a write that was not applied is sent again
const SILENCE = 2500; // of a stream, after which another node is asked
const STUCK = 200; // after which a write counts as one that waits, and others are sent to see
const OUTAGE = 350; // a shorter wait is none
const SETTLED = 10000; // after an attempt's end: what is not in the log then was not written
const ASK_FOR = 3500; // one node to compare with the log
const STALE = 10000; // a comparison that is older says nothing of now
const NAMES = 20; // earlier loads of this page whose writes are still compared

const seconds = (ms) => (ms < 9950 ? (ms / 1000).toFixed(ms < 995 ? 2 : 1) : Math.round(ms / 1000)) + " s";
const time = new Intl.DateTimeFormat(undefined, { hourCycle: "h23", hour: "2-digit", minute: "2-digit", second: "2-digit" });

// The stream. It comes from one node, and from another when that one falls silent. A page that
// is hidden has none and writes nothing: all tabs share the browser's connections to a host.

let from = demo.node, stream, heard = 0, views = new Map();

function connect(id) {
  if (stream) stream.close();
  from = id;
  heard = performance.now();
  $("from").textContent = id;
  showFrom();
  if (document.hidden) return;
  stream = new EventSource(`/node/${id}/events`);
  const live = (handle) => (e) => { heard = performance.now(); handle(JSON.parse(e.data)); };
  stream.addEventListener("nodes", live(showNodes));
  stream.addEventListener("log", live(showLog));
  stream.onerror = () => { if (from === id) moveOn(); };
}

let moving = false;
async function moveOn() {
  if (moving) return;
  moving = true;
  stream?.close();
  const next = ids[(ids.indexOf(from) + 1) % ids.length];
  await sleep(150);
  moving = false;
  connect(next);
}

let answered = performance.now();
document.addEventListener("visibilitychange", () => {
  inVain = Infinity; // nobody measures while nothing is written
  vain = 0;
  if (document.hidden) return stream?.close();
  answered = performance.now();
  connected = true;
  connect(from);
});

setInterval(() => {
  if (document.hidden) return;
  const now = performance.now();
  if (now - heard > SILENCE) moveOn();
  if (silent()) askSupervisor();
  else banner("silence", "");
}, 500);

// silent tells whether no node has been heard for longer than it takes to go to the next one.
const silent = () => performance.now() - answered > 2 * SILENCE;

// connected is false while not even the supervisor answers: nothing is written then, as all of
// it would have an unknown end.
let connected = true, asking = false;
async function askSupervisor() {
  if (asking) return;
  asking = true;
  let known = [];
  try {
    const resp = await fetch("/facts", { headers: { "X-Demo-Token": demo.token }, signal: AbortSignal.timeout(2000) });
    if (resp.ok) known = await resp.json();
  } catch { /* it is gone, or stands still */ }
  asking = false;
  if (!silent()) return;
  connected = known.length > 0;
  for (const id of ids) views.set(id, { id, process: "", ...known.find((f) => f.id === id), status: null });
  showCards();
  if (!connected) banner("silence", "Not connected: nothing has answered for some seconds, and nothing is written. If the demo was stopped, start it again: this page will find it.");
  else if (known.every((f) => f.process === "down")) banner("silence", "No node runs: start one.");
  else banner("silence", "No node has answered for some seconds.");
}

const banners = {};
function banner(kind, text) {
  banners[kind] = text;
  const all = Object.values(banners).filter(Boolean).join(" ");
  if ($("banner").textContent !== all) $("banner").textContent = all;
  $("banner").hidden = !all;
}

function announce(text) { $("announcer").textContent = text; }

// The nodes.

let leader = "";
const leads = () => [...views.values()].find((v) => v.status?.ready && v.process === "running")?.id ?? "";

function showNodes(o) {
  answered = performance.now();
  if (!connected) hurry();
  connected = true;
  if (String(o.run) !== demo.run) return location.reload(); // another run has another token
  for (const v of o.nodes) {
    const before = views.get(v.id);
    views.set(v.id, v);
    if (v.process === "running" && before && before.process !== "running") avoid.delete(v.id);
  }
  showCards();
  const now = leads();
  if (now && now !== leader) {
    if (leader) announce(`${now} leads now`);
    leader = now;
  }
  const cluster = o.nodes.find((v) => v.status?.cluster)?.status.cluster;
  if (cluster) book.open(cluster);
}

function showCards() {
  const most = Math.max(0, ...[...views.values()].map((v) => v.status?.applied ?? 0));
  for (const v of views.values()) showCard(v, most);
}

function showCard(v, most) {
  const card = $(v.id), s = v.status, cut = v.deaf || v.mute;
  const health = v.process === "down" || v.process === "paused" ? v.process : cut ? "cut" : s ? "well" : "silent";
  const role = { down: "down", paused: "paused", silent: "no answer" }[health] ?? (s ? s.role : "no answer");
  card.dataset.health = health;
  card.dataset.role = health === "well" && s.ready ? "leader" : "";
  put(card.querySelector(".role"), role === "leader" && s && !s.ready ? "taking over" : role);
  put(card.querySelector(".note"), note(v, health));
  field(card, "pid", v.pid || "–");
  if (s) {
    field(card, "term", s.term);
    field(card, "applied", s.applied);
    field(card, "lag", most - s.applied);
    field(card, "rows", s.rows);
    field(card, "uptime", uptime(s.uptime));
  } else {
    field(card, "uptime", "–");
    const last = Number(card.querySelector("[data-field=applied]").textContent);
    field(card, "lag", last && most ? Math.max(0, most - last) : "–");
  }
  const busy = card.getAttribute("aria-busy") === "true", runs = v.process !== "down";
  button(card, "restart", runs ? "Restart" : "Start", busy, !runs);
  button(card, "kill", "Kill −9", busy || !runs);
  button(card, "pause", v.process === "paused" ? "Resume" : "Pause", busy || !runs || demo.canPause !== "true", v.process === "paused");
  button(card, "cut", cut ? "Heal" : "Cut off", busy, cut);
  button(card, "mute", "One way", busy || cut);
}

function note(v, health) {
  if (v.status?.halted) return "stopped: " + v.status.halted;
  if (health === "down") return "its data stay on disk";
  if (health === "paused") return "stands still, answers nobody";
  if (!v.process && !v.status) return "not known just now";
  if (health === "silent") return "did not answer just now";
  const alone = v.status && !v.status.leader ? ": no leader, refuses writes" : "";
  if (v.deaf && v.mute) return "cut off" + (alone || " from the others");
  if (v.mute) return "not heard" + (alone || " by the others");
  if (v.deaf) return "hears nobody" + alone;
  if (v.status.ready) return "orders all writes";
  return v.status.leader ? "follows " + v.status.leader : "waits for an election";
}

function put(el, text) { if (el.textContent !== String(text)) el.textContent = text; }
function field(card, name, value) { put(card.querySelector(`[data-field=${name}]`), value); }
function uptime(ms) {
  const s = Math.floor(ms / 1000);
  if (s < 60) return s + " s";
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

function button(card, what, text, disabled, undo = false) {
  const b = card.querySelector(`[data-do=${what}]`);
  put(b, text);
  b.disabled = disabled;
  b.classList.toggle("undo", undo);
}

function showFrom() {
  for (const card of cards) card.querySelector("[data-do=show]").setAttribute("aria-pressed", String(card.dataset.node === from));
}

for (const card of cards) {
  card.addEventListener("click", (e) => {
    const b = e.target.closest("button[data-do]");
    if (b) act(card, b.dataset.do);
  });
}

async function act(card, what) {
  const id = card.dataset.node, v = views.get(id);
  if (what === "show") return connect(id);
  const action = what === "pause" && v?.process === "paused" ? "resume" : what === "cut" && (v?.deaf || v?.mute) ? "heal" : what;
  card.setAttribute("aria-busy", "true");
  hurry();
  try {
    const resp = await fetch(`/node/${id}/do/${action}`, { method: "POST", headers: { "X-Demo-Token": demo.token } });
    const answer = await resp.json().catch(() => ({}));
    banner("action", resp.ok ? "" : answer.error ?? `the supervisor answered ${resp.status}`);
    if (resp.ok) {
      for (const facts of answer) {
        const before = views.get(facts.id), same = facts.process === "running" && facts.pid === before?.pid;
        views.set(facts.id, { ...before, ...facts, status: same ? before.status : null }); // another process has another status
      }
      announce(`${id}: ${action} done`);
    }
  } catch {
    banner("action", "The supervisor does not answer: was the demo stopped?");
  }
  hurry();
  card.setAttribute("aria-busy", "false");
  showCards();
}

// The log.

let newest = 0;
function showLog(rows) {
  const first = newest === 0;
  $("rows").replaceChildren(...rows.slice(0, 30).map((r) => {
    const tr = document.createElement("tr");
    tr.setAttribute("role", "row"); // a grid, which rows are on a phone, has no role
    if (!first && r.seq > newest) tr.className = "fresh";
    tr.dataset.id = r.id;
    tr.append(cell(r.seq), cell(r.text), cell(who(r.received)), cell(r.applied ? who(r.applied) : "unknown", r.term ? ` term ${r.term}` : ""), cell(time.format(r.sent)));
    return tr;
  }));
  newest = Math.max(0, ...rows.map((r) => r.seq));
}

function cell(content, extra = "") {
  const td = document.createElement("td");
  td.setAttribute("role", "cell");
  td.append(content);
  if (extra) {
    const span = document.createElement("span");
    span.className = "term";
    span.textContent = extra;
    td.append(span);
  }
  return td;
}

function who(id) {
  const span = document.createElement("span"), dot = document.createElement("span");
  span.className = "who";
  span.dataset.node = id;
  dot.className = "dot";
  span.append(dot, id);
  return span;
}

// The book of this page's writes, which a reload does not lose. Every load writes under a
// name of its own: a tab that was duplicated has a copy of the other's book.

const book = { cluster: "", own: null, earlier: [], open: openBook };

// newAccount keeps what became of the writes of one name, by their numbers.
const newAccount = () => ({
  name: "page" + crypto.getRandomValues(new Uint32Array(2)).reduce((name, part) => name + part.toString(36), ""),
  next: 1, acked: [],
  found: [], // not acknowledged, but seen in the log
  unknown: [], // and when the last attempt ends
  lost: 0,
});

function openBook(cluster) {
  if (book.cluster === cluster) return;
  const saved = JSON.parse(sessionStorage.getItem("colmena-ha") ?? "null");
  book.cluster = cluster;
  book.earlier = saved?.cluster === cluster ? (saved.accounts ?? []).slice(-NAMES) : [];
  book.own = newAccount();
  saveBook();
}

const accounts = () => [...book.earlier, book.own];

function saveBook() {
  const kept = accounts().filter((a) => a.acked.length || a.found.length || a.unknown.length);
  sessionStorage.setItem("colmena-ha", JSON.stringify({ cluster: book.cluster, accounts: kept }));
  const unknown = kept.reduce((sum, a) => sum + a.unknown.length, 0);
  $("acked").textContent = kept.reduce((sum, a) => sum + count(a.acked), 0).toLocaleString();
  $("unknown").textContent = unknown;
  $("unknown").className = unknown ? "bad" : "";
}

const count = (ranges) => ranges.reduce((sum, [a, b]) => sum + b - a + 1, 0);
const has = (ranges, n) => ranges.some(([a, b]) => a <= n && n <= b);

function add(ranges, n) {
  if (has(ranges, n)) return;
  ranges.push([n, n]);
  ranges.sort((x, y) => x[0] - y[0]);
  for (let i = ranges.length - 1; i > 0; i--) {
    if (ranges[i - 1][1] + 1 >= ranges[i][0]) {
      ranges[i - 1][1] = Math.max(ranges[i - 1][1], ranges[i][1]);
      ranges.splice(i, 1);
    }
  }
}

// Writing.

let fastUntil = 0, lastAck = 0;
let inVain = Infinity, vain = 0; // when the first write since lastAck was sent that has ended without an acknowledgement, and how many did
const owing = new Set(); // nodes that owe an answer for longer than a moment
const avoid = new Map(); // node → {until, pause} after it did not take a write
const pending = new Map(); // number → when it was first sent
const underWay = { auto: 0, own: 0 };
const hurry = () => { fastUntil = performance.now() + FAST_FOR; };
const stuck = () => vain > 0 || [...pending.values()].some((since) => performance.now() - since > STUCK);

// hurries tells whether writes follow each other fast. Where several have ended in vain, more do
// not help to see.
const hurries = () => vain <= SLOTS && (performance.now() < fastUntil || stuck());

(async function writeOn() {
  for (;;) {
    const began = performance.now();
    if (book.own && connected && !document.hidden && free("auto")) write(phrase(), "");
    do await sleep(50); while (performance.now() - began < (hurries() ? FAST_PACE : PACE));
  }
})();

// free tells whether a write may begin. Without a leader all writes wait: one more than the
// first is enough to see when that ends, and leaves a slot for the visitor's own lines.
function free(kind) {
  if (underWay.auto + underWay.own >= SLOTS) return false;
  return kind === "own" ? underWay.own === 0 : underWay.auto < (leads() ? SLOTS : SLOTS - 1);
}

const things = ["the tide at the pier", "a bee at hive 7", "rain on the roof", "the 9:41 to the coast", "a door in the east wing", "a kettle on the boil",
  "the lamp on buoy 12", "a knock at the gate", "wind over the ridge", "the night shift"];
const phrase = () => "saw " + things[Math.floor(Math.random() * things.length)];

function choose(not) {
  const now = performance.now(), any = (list) => list[Math.floor(Math.random() * list.length)];
  const others = ids.filter((id) => id !== not), quiet = others.filter((id) => !owing.has(id));
  return any(quiet.filter((id) => !((avoid.get(id)?.until ?? 0) > now))) ?? any(quiet) ?? any(others);
}

// write sends an event until it is acknowledged or its outcome is unknown. What was
// certainly not applied is sent again, through another node; what is unknown never is.
async function write(text, through, own = false) {
  const account = book.own, n = account.next++, id = `${account.name}-${n}`, asked = performance.now(), sent = Date.now();
  const item = trouble(n, own ? `“${text}”` : `event ${n}`, own);
  if (!own) underWay.auto++;
  let via = through || choose("");
  for (let tries = 1; ; tries++) {
    if (own && !(await slot(asked, item))) {
      item.close("given up", "it was not applied");
      break;
    }
    if (!pending.has(n)) pending.set(n, performance.now());
    const began = pending.get(n), end = Date.now() + PATIENCE;
    const a = await attempt(via, { id, text, sent, until: end });
    if (own) underWay.own--;
    if (a.outcome === "written") {
      avoid.delete(via);
      acknowledged(account, n, began, via, item);
      break;
    }
    const rest = avoid.get(via)?.pause ?? 1500;
    avoid.set(via, { until: performance.now() + rest, pause: Math.min(2 * rest, 24000) });
    if (a.outcome !== "not applied") {
      account.unknown.push([n, end]);
      saveBook();
      item.open("unknown", a.error ?? `${via} did not answer`, "it may have happened, the log will tell");
      sample(performance.now() - began, true);
      break;
    }
    if (performance.now() - asked > TRY_FOR) {
      item.close("given up", "it was not applied");
      sample(performance.now() - began, true);
      break;
    }
    const next = through || choose(via);
    const why = a.error.replace(/^colmena: /, "");
    item.open("refused", why.startsWith(via) ? why : `${via}: ${why}`, `sent again through ${next}`);
    if (next === via || tries > 1) await sleep(300);
    via = next;
  }
  if (!own) underWay.auto--;
  const since = pending.get(n) ?? Infinity;
  pending.delete(n);
  if (since > lastAck && since < Infinity && !document.hidden) {
    inVain = Math.min(inVain, since);
    vain++;
  }
}

// slot waits until an own line may be sent, and takes its place. It is false when that took
// too long.
async function slot(asked, item) {
  for (const began = performance.now(); !free("own"); await sleep(50)) {
    const now = performance.now();
    if (now - asked > TRY_FOR) return false;
    if (now - began > STUCK && !item.waits) {
      item.waits = true;
      item.open("waits", "other writes are under way", "it has not been sent yet");
    }
  }
  item.waits = false;
  underWay.own++;
  return true;
}

async function attempt(via, e) {
  const ctl = new AbortController();
  const late = setTimeout(() => owing.add(via), STUCK), end = setTimeout(() => ctl.abort(), PATIENCE);
  try {
    const resp = await fetch(`/node/${via}/write`, { method: "POST", headers: { "X-Demo-Token": demo.token }, body: JSON.stringify(e), signal: ctl.signal });
    return await resp.json();
  } catch {
    return { outcome: "unknown" };
  } finally {
    clearTimeout(late);
    clearTimeout(end);
    owing.delete(via);
  }
}

// waiting is for how long writes have waited while none was acknowledged. One that ends without
// an acknowledgement does not end that.
const waiting = () => Math.max(0, performance.now() - Math.max(lastAck, Math.min(inVain, ...pending.values())));

function acknowledged(account, n, began, via, item) {
  const now = performance.now(), wait = waiting();
  add(account.acked, n);
  saveBook();
  sample(now - began, false);
  if (wait > OUTAGE) outage(wait);
  lastAck = now;
  inVain = Infinity;
  vain = 0;
  item.close("resolved", `written through ${via} after ${seconds(now - began)}`);
}

let lastOutage = ["none yet", ""];
function outage(ms) {
  lastOutage = [seconds(ms), " at " + time.format(Date.now())];
  showOutage();
}

function showOutage() {
  const now = waiting(), lasts = now > OUTAGE + 2 * STUCK, small = document.createElement("small");
  small.textContent = lasts ? " and it lasts" : lastOutage[1];
  $("outage").replaceChildren(lasts ? seconds(now) : lastOutage[0], small);
  $("outage").className = lasts ? "bad" : "";
}
setInterval(showOutage, 200);

// trouble is a line about a write that was not simply acknowledged; it is shown when there is
// something to say, and for a while after that has been resolved. What became of the visitor's
// own lines is also announced.
const TROUBLES = 3, RESOLVED_FOR = 10000;
function trouble(n, name, own) {
  let li, cause, told;
  const say = (what, text, open) => {
    li ??= document.createElement("li");
    const b = document.createElement("b");
    b.textContent = what;
    li.replaceChildren(b, text);
    li.classList.toggle("open", open);
    if (li.isConnected) return;
    $("trouble").prepend(li);
    const all = [...$("trouble").children];
    if (all.length > TROUBLES) (all.slice(1).findLast((one) => !one.classList.contains("open")) ?? all.at(-1)).remove();
  };
  const close = (what, text) => {
    if (own) announce(`${name}: ${text}`);
    if (!li) return;
    say(what, `${name}: ${cause}; ${text}`, false);
    setTimeout(() => li.remove(), RESOLVED_FOR);
  };
  lines.set(n, close);
  if (lines.size > 200) lines.delete(lines.keys().next().value);
  const open = (what, text, then) => {
    if (own && what !== told) announce(`${name} ${what}: ${text}; ${then}`);
    told = what;
    cause = text;
    say(what, `${name}: ${text}; ${then}`, true);
  };
  return { close, open };
}
const lines = new Map(); // number → how its line ends

// Looking: what became of writes that were not answered, and whether the log has all that
// were acknowledged, once.

let compared = performance.now();
(async function look() {
  for (let turn = 0; ; turn++) {
    await sleep(book.own?.unknown.length ? 1000 : 4000);
    if (!book.own || document.hidden) continue;
    if (!(await compare(book.own))) continue;
    compared = performance.now();
    if (book.earlier.length) await compare(book.earlier[turn % book.earlier.length]);
  }
})();

// whom returns all nodes, the likeliest to answer first.
function whom() {
  const worth = (id) => (id === leads()) * 4 + (views.get(id)?.process === "running") * 2 + (id === from);
  return [...ids].sort((a, b) => worth(b) - worth(a));
}

async function compare(account) {
  for (const id of whom()) {
    const { acked, found } = structuredClone(account), asked = Date.now();
    try {
      const resp = await fetch(`/node/${id}/ledger?client=${account.name}`, { signal: AbortSignal.timeout(ASK_FOR) });
      if (!resp.ok) continue;
      judge(account, [...acked, ...found], asked, await resp.json());
      return true;
    } catch { /* this node cannot tell now */ }
  }
  return false;
}

// judge compares what was known before the question with the log.
function judge(account, known, asked, log) {
  account.lost = 0;
  for (const [a, b] of known) for (let n = a; n <= b; n++) if (!has(log.have, n)) account.lost++;
  account.unknown = account.unknown.filter(([n, end]) => {
    const close = account === book.own ? lines.get(n) : undefined;
    if (has(log.have, n)) {
      add(account.found, n);
      close?.("resolved", "it was written, once");
    } else if (asked > end + SETTLED) {
      close?.("resolved", "it was not written");
    } else return true;
    return false;
  });
  saveBook();
  verdict("lost", accounts().reduce((sum, a) => sum + a.lost, 0));
  verdict("doubled", log.doubled.length);
}

function verdict(id, n) {
  put($(id), n);
  $(id).className = n ? "bad" : "good";
}

setInterval(() => {
  const age = performance.now() - compared, stale = age > STALE;
  for (const one of document.querySelectorAll(".age")) {
    put(one, stale ? `not compared for ${uptime(age)}` : "");
    one.previousElementSibling.classList.toggle("stale", stale);
  }
}, 500);

// The chart: one bar for each write, on a logarithmic scale from 1 ms to 10 s.

const SAMPLES = 90, samples = [];
function sample(ms, none) {
  samples.push({ ms, none });
  if (samples.length > SAMPLES) samples.shift();
  draw();
}

const NS = "http://www.w3.org/2000/svg";
const el = (name, attrs, text = "") => {
  const e = document.createElementNS(NS, name);
  for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
  e.textContent = text;
  return e;
};

function draw() {
  const { width, height } = $("chart").getBoundingClientRect(), base = height - 6, left = 40;
  if (!width) return;
  $("chart").setAttribute("viewBox", `0 0 ${width} ${height}`);
  const up = (ms) => Math.max(2, Math.min(base - 4, (base - 8) * Math.log10(Math.max(ms, 1)) / 4));
  const parts = [[1, "1 ms"], [10, "10 ms"], [100, "0.1 s"], [1000, "1 s"]].flatMap(([ms, text]) => {
    const y = base - (ms === 1 ? 0 : up(ms));
    return [el("line", { class: "grid", x1: left, x2: width, y1: y, y2: y }), el("text", { x: 0, y: y + 3.5 }, text)];
  });
  const step = (width - left) / SAMPLES;
  samples.forEach((s, i) => {
    const h = s.none ? base - 4 : up(s.ms);
    parts.push(el("rect", { class: s.none ? "none" : s.ms > OUTAGE ? "slow" : "bar", x: width - step * (samples.length - i), width: step * 0.7, y: base - h, height: h, rx: 1 }));
  });
  $("chart").replaceChildren(...parts);
  const sorted = samples.filter((s) => !s.none).map((s) => s.ms).sort((a, b) => a - b);
  if (!sorted.length) return;
  const ms = (v) => (v < 1000 ? `${v < 10 ? v.toFixed(1) : Math.round(v)} ms` : seconds(v));
  const text = `median ${ms(sorted[Math.floor(sorted.length / 2)])}, longest ${ms(sorted.at(-1))}`;
  put($("latency"), text);
  $("chart").setAttribute("aria-label", `Latency of the last ${samples.length} writes: ${text}`);
}

$("write").addEventListener("submit", (e) => {
  e.preventDefault();
  const text = $("text").value.trim();
  if (!text || !book.own) return;
  write(text, $("through").value, true);
  $("text").value = "";
});

addEventListener("resize", draw);
draw();
connect(from);
