"use strict";
// All text goes in through textContent: what a chunk or a memory says is never read as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const MEMORIES = ["core", "semantic", "episodic"];
const byId = (id) => document.getElementById(id);
let episode = data.episodes[0], chunk = 0, columns = [];

function el(tag, className, text, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

function number(value, digits = 2) {
  return value === null || value === undefined ? "–" : value.toFixed(digits);
}

// The memory of a run after chunk `last`: a map id -> {text, chunk} for each memory. Ids only grow,
// so the order of insertion is the order in the list.
function replay(run, last) {
  const memory = MEMORIES.map(() => new Map());
  for (let at = 0; at <= last && at < run.steps.length; at++) {
    for (const [kind, id, , after] of run.steps[at].changes) {
      if (after === null) memory[kind].delete(id);
      else memory[kind].set(id, { text: after, chunk: at });
    }
  }
  return memory;
}

function origin(at) {
  const button = el("button", "origin", `chunk ${at}`);
  button.dataset.chunk = at;
  return button;
}

function line(kind, item, change) {
  const made = el("div", `entry ${item.state}`);
  if (item.state) made.append(el("span", "mark", item.state));
  if (kind > 0) made.append(el("span", "id", `[${item.id}] `));
  made.append(el("span", "now", item.text));
  if (item.state === "changed") made.append(el("span", "old", change[2]));
  if (!item.state) made.append(" ", origin(item.chunk));
  return made;
}

// What a list shows after the current chunk: entries in order, those just deleted among them.
function itemsOf(before, changes) {
  const items = new Map(before);
  for (const [id, change] of changes) {
    const gone = change[3] === null, state = gone ? "deleted" : change[2] === null ? "added" : "changed";
    items.set(id, { text: gone ? change[2] : change[3], chunk, state });
  }
  return [...items].map(([id, item]) => ({ id, state: "", ...item }));
}

// Lines that stay as they are keep their elements, so that long lists stay quick to step through.
function fillList(list, kind, before, changes) {
  const items = itemsOf(before, changes), lines = new Map();
  for (const item of items) {
    const key = `${item.state} ${item.chunk}`, old = list.lines.get(item.id);
    const node = old && old.key === key ? old.node : line(kind, item, changes.get(item.id));
    lines.set(item.id, { key, node });
  }
  for (const [id, { node }] of list.lines) if (lines.get(id)?.node !== node) node.remove();
  let place = list.box.firstChild;
  for (const { node } of lines.values()) {
    if (node === place) place = place.nextSibling;
    else list.box.insertBefore(node, place);
  }
  list.lines = lines;
  list.empty.hidden = items.length > 0;
  const count = items.filter((item) => item.state !== "deleted").length;
  list.title.textContent = MEMORIES[kind] + (kind ? `, ${count}` : "");
  const first = items.find((item) => item.state);
  if (first) list.box.scrollTop = lines.get(first.id).node.offsetTop - list.box.offsetTop;
}

function calls(step) {
  if (!step.calls.length) return [el("div", "call bad", "no call")];
  return step.calls.map((call) => {
    const verdict = call.outcome + (call.fit ? "" : ", content unfit");
    return el("div", `call ${call.outcome === "ok" ? "ok" : "bad"}`, `${verdict}: ${call.text}`);
  });
}

function folded(title, text) {
  return el("details", "", null, el("summary", "", title), text);
}

// The elements of one run; they stay while its episode is shown.
function column(run) {
  const root = el("section", "run", null, el("h2", "", run.name));
  const parts = { run, root, sizes: el("div", "soft"), calls: el("div"), response: el("pre"), prompt: el("pre") };
  root.append(parts.sizes, el("h3", "", "calls"), parts.calls);
  root.append(folded("raw response", parts.response), folded("prompt", parts.prompt));
  parts.lists = MEMORIES.map(() => {
    const empty = el("div", "entry soft", "(empty)");
    const list = { title: el("h3"), box: el("div", "entries", null, empty), empty, lines: new Map() };
    root.append(list.title, list.box);
    return list;
  });
  return parts;
}

function showRun(parts) {
  const step = parts.run.steps[chunk], before = replay(parts.run, chunk - 1);
  const sizes = `r2 ${number(step.r2)}, r4 ${number(step.r4)}; memory ${step.tokens} tokens`;
  parts.sizes.textContent = sizes + (step.finished ? "" : "; response cut by its limit");
  parts.calls.replaceChildren(...calls(step));
  parts.response.textContent = step.response;
  parts.prompt.textContent = step.prompt;
  parts.lists.forEach((list, kind) => {
    const changes = step.changes.filter((change) => change[0] === kind);
    fillList(list, kind, before[kind], new Map(changes.map((change) => [change[1], change])));
  });
}

function answerBlock(run, index) {
  const answer = run.answers[index], score = answer.score;
  const verdict = score === null ? "not judged" : score >= 1 ? "right" : score > 0 ? "partly right" : "wrong";
  const mark = el("b", score >= 1 ? "right" : "wrong", `${verdict} (${number(score)})`);
  const block = el("div", "", null, el("span", "soft", `${run.name}: `), mark);
  block.append(el("pre", "", answer.text === null ? "(the reader failed)" : answer.text || "(empty)"));
  const found = el("details", "", null);
  found.append(el("summary", "", `${answer.found.length} entries retrieved, ${answer.tokens} tokens read`));
  for (const [id, score, kind, text, at] of answer.found) {
    const source = el("div", "entry", null, el("span", "id", `${MEMORIES[kind]} [${id}] ${number(score)} `));
    source.append(el("span", "", text), " ", origin(at));
    found.append(source);
  }
  block.append(found);
  return block;
}

function questions() {
  const section = byId("questions");
  section.replaceChildren();
  episode.questions.forEach((asked, index) => {
    const box = el("div", "question", null, el("b", "", asked.question));
    box.append(el("div", "soft", `gold: ${asked.gold.join("; ")}`));
    box.append(...episode.runs.map((run) => answerBlock(run, index)));
    section.append(box);
  });
}

function show(at) {
  chunk = Math.max(0, Math.min(episode.chunks.length - 1, at));
  byId("slider").value = chunk;
  byId("place").textContent = `chunk ${chunk} of 0–${episode.chunks.length - 1}`;
  byId("chunk").textContent = episode.chunks[chunk];
  columns.forEach(showRun);
}

function open(index) {
  episode = data.episodes[index];
  byId("slider").max = episode.chunks.length - 1;
  const names = episode.runs.map((run) => {
    const rewards = `r1 ${number(run.r1)}, r3 ${number(run.r3)}`;
    return `${run.name}: ${rewards}, memory ${run.memory_tokens} of ${run.chunk_tokens} tokens`;
  });
  byId("totals").textContent = names.join(" · ");
  questions();
  columns = episode.runs.map(column);
  byId("runs").replaceChildren(...columns.map((parts) => parts.root));
  show(0);
}

data.episodes.forEach((one, index) => {
  const rewards = one.runs.map((run) => number(run.r1)).join(" → ");
  const option = el("option", "", `${one.name}, r1 ${rewards}`);
  option.value = index;
  byId("episode").append(option);
});
byId("episode").addEventListener("change", (event) => open(Number(event.target.value)));
byId("slider").addEventListener("input", (event) => show(Number(event.target.value)));
byId("back").addEventListener("click", () => show(chunk - 1));
byId("next").addEventListener("click", () => show(chunk + 1));
document.addEventListener("click", (event) => {
  if (event.target.dataset.chunk) show(Number(event.target.dataset.chunk));
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
  const last = episode.chunks.length - 1;
  const moves = { ArrowRight: chunk + 1, j: chunk + 1, ArrowLeft: chunk - 1, k: chunk - 1,
    PageDown: chunk + 10, PageUp: chunk - 10, Home: 0, End: last };
  if (event.key in moves) { show(moves[event.key]); event.preventDefault(); }
  else if (event.key === "q") byId("questions").scrollIntoView();
});
open(0);
