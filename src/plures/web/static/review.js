// The review page. Answers go into `unsent` and from there to the server, one request at a time and in order; an answer
// leaves `unsent` only once the server has said what became of it, so a lost connection loses nothing.
"use strict";

const $ = (id) => document.getElementById(id);
const SAMPLE = document.body.dataset.mode === "sample";
const AHEAD = 20, GRID = 12, RETRY_MS = 1000;
const TAB = sessionStorage.tab || (sessionStorage.tab = newId());

let queue = [];        // questions (or images of the sample) not answered yet, the first is shown
let unsent = [];       // decisions that the server has not acknowledged
let history = [];      // items that this tab has answered
let tag = "";          // the class that is asked for, "" for all
let grid = false, sending = false, filling = null, exhausted = false, generation = 0;
let state = null, here = 0, marks = {}, statePending = null;

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
}

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  const answer = await fetch(path, options);
  if (answer.ok) return answer.json();
  const text = await answer.text();
  let detail = text;
  try { detail = JSON.parse(text).detail; } catch { /* plain text */ }
  throw Object.assign(new Error(typeof detail === "string" ? detail : "refused"), { status: answer.status });
}

// ---------------------------------------------------------------------------------------------- what comes from there

const nameOf = (item) => (SAMPLE ? item.row : item.question);

async function fill() {
  if (filling) return filling;
  const mine = generation;
  filling = (async () => {
    try {
      const have = [...queue.map(nameOf), ...unsent.map((d) => (SAMPLE ? d.row : d.question))];
      const path = `/api/items?limit=${AHEAD}&tag=${encodeURIComponent(tag)}&skip=${have.join(",")}`;
      const found = await call(path);
      if (mine !== generation) return;
      queue.push(...found);
      exhausted = found.length === 0;
      online();
      for (const item of found.slice(0, 8)) new Image().src = item.photo;
    } catch (error) {
      offline(error);
      setTimeout(fill, RETRY_MS);
    } finally {
      filling = null;
      if (mine !== generation) fill(); else show();
    }
  })();
  return filling;
}

function refill() {
  generation += 1;
  queue = [];
  exhausted = false;
  fill();
}

function loadState() {
  if (statePending) return;
  statePending = setTimeout(async () => {
    statePending = null;
    try {
      state = await call("/api/state");
      showProgress();
    } catch (error) { offline(error); }
  }, 60);
}

// ------------------------------------------------------------------------------------------------ what goes over there

function decide(item, answers) {
  const versions = SAMPLE ? Object.fromEntries(item.tags.map((t) => [t.tag, t.version])) : { [item.tag]: item.version };
  const target = SAMPLE ? { row: item.row } : { question: item.question };
  unsent.push({ id: newId(), ...target, answers, versions });
  history.push(item);
  send();
}

async function send() {
  if (sending) return;
  sending = true;
  while (unsent.length) {
    showSaved();
    const batch = unsent.slice(0, 50);
    try {
      const outcomes = await call("/api/decisions", { tab: TAB, decisions: batch });
      outcomes.forEach(hear);
      unsent = unsent.slice(batch.length);
      online();
    } catch (error) {
      offline(error);
      if (error.status === 400 || error.status === 422) unsent = unsent.slice(batch.length);
      else await new Promise((done) => setTimeout(done, RETRY_MS));
    }
  }
  sending = false;
  showSaved();
  loadState();
}

function hear(outcome) {
  if (outcome.status !== "conflict") return;
  const [name, cell] = Object.entries(outcome.cells)[0];
  const what = cell.answer ? `is answered "${cell.answer}"` : "was taken back";
  toast(`${name} in ${outcome.image} ${what} in another tab; your answer was not counted`);
}

async function undo() {
  if (unsent.length) { toast("still saving; try again in a moment"); return; }
  try {
    const outcome = await call("/api/undo", { tab: TAB, id: newId() });
    if (outcome.status === "nothing") { toast("nothing to undo"); return; }
    if (outcome.status === "conflict") { toast("another tab has answered this since; it stays"); return; }
    const at = history.findLastIndex((i) => i.image === outcome.image && (SAMPLE || i.tag in outcome.cells));
    if (at >= 0 && !grid) {
      const [item] = history.splice(at, 1);
      if (SAMPLE) item.tags.forEach((t) => Object.assign(t, outcome.cells[t.tag]));
      else Object.assign(item, outcome.cells[item.tag]);
      queue.unshift(item);
      show();
    } else refill();
    toast(`taken back: ${SAMPLE ? outcome.image : Object.keys(outcome.cells)[0]}`);
    loadState();
  } catch (error) { offline(error); }
}

// ------------------------------------------------------------------------------------------------------ what one sees

function offline(error) {
  const waiting = unsent.length ? ` ${unsent.length} answer${unsent.length > 1 ? "s wait" : " waits"} here, to be sent as soon as it does.` : "";
  $("banner").textContent = error.status ? `The server refused: ${error.message}` : `The server does not answer.${waiting}`;
  $("banner").hidden = false;
}

function online() { $("banner").hidden = true; }

function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => { $("toast").hidden = true; }, 4000);
}

function showSaved() { $("saved").textContent = unsent.length ? `saving ${unsent.length}` : "saved"; }

function showProgress() {
  $("progress").max = Math.max(1, state.total);
  $("progress").value = state.done;
  $("count").textContent = `${state.done.toLocaleString("en")} of ${state.total.toLocaleString("en")}`;
  if (state.failure) { $("banner").textContent = `The table could not be written (the answers are safe): ${state.failure}`; $("banner").hidden = false; }
  if (SAMPLE) return;
  const all = { tag: "", done: state.done, total: state.total };
  const buttons = [all, ...state.classes].map((c) => {
    const button = document.createElement("button");
    button.dataset.tag = c.tag;
    button.setAttribute("aria-pressed", String(c.tag === tag));
    const left = Object.assign(document.createElement("span"), { className: "left", textContent: c.total - c.done });
    button.append(c.tag || "all classes", left);
    button.onclick = () => { tag = c.tag; showProgress(); refill(); };
    return button;
  });
  const focused = document.activeElement?.dataset?.tag;
  $("classes").replaceChildren(...buttons);
  if (focused !== undefined) buttons.find((b) => b.dataset.tag === focused)?.focus();
}

function show() {
  const wanted = grid ? GRID : 1;
  if (queue.length < Math.max(wanted, AHEAD / 2) && !exhausted && !filling) fill();
  const item = queue[0];
  $("end").hidden = Boolean(item) || !exhausted;
  if (!item && exhausted) $("end").textContent = tag ? `All of "${tag}" is answered. Choose another class.` : "All is answered. The table is up to date; you can close this page.";
  $("pictures").hidden = grid || !item;
  $("actions").dataset.empty = String(!item);
  if (SAMPLE) showSample(item); else if (grid) showGrid(); else showOne(item);
}

function showPhoto(item) {
  if ($("photo").dataset.of !== item.photo) {
    $("photo").src = item.photo;
    $("photo").dataset.of = item.photo;
    $("photo").alt = item.image;
  }
}

function showOne(item) {
  $("grid").hidden = true;
  $("ask").textContent = item ? `${item.tag}?` : "";
  $("about").textContent = item ? about(item) : "";
  if (!item) return;
  $("ask").dataset.question = item.question;
  showPhoto(item);
  $("heat-figure").hidden = !item.heat;
  if (item.heat && $("heat").dataset.of !== item.heat) {
    $("heat").src = item.heat;
    $("heat").dataset.of = item.heat;
    $("heat").alt = `where the model saw ${item.tag}`;
  }
  const next = queue[1];
  if (next?.heat) new Image().src = next.heat;
}

function about(item) {
  const name = item.image.split("/").pop();
  const score = item.score === null ? "" : ` · score ${item.score.toFixed(2)}`;
  const says = item.kind === "wrong" ? ` · the table says ${item.code === 1 ? "present" : item.code === 0 ? "absent" : "unknown"}, the model doubts it` : "";
  return `${name}${score}${says}`;
}

function showGrid() {
  const shown = queue.slice(0, GRID);
  $("ask").textContent = shown.length ? (tag ? `${tag}? Click the photos that show it` : "Choose a class on the left") : "";
  $("about").textContent = "";
  $("grid").hidden = !shown.length || !tag;
  $("confirm").disabled = !tag || !shown.length;
  if (!tag) return;
  const key = shown.map(nameOf).join();
  if ($("grid").dataset.key === key) return;
  $("grid").dataset.key = key;
  $("grid").replaceChildren(...shown.map((item) => {
    const button = Object.assign(document.createElement("button"), { className: "cell", title: item.image });
    button.dataset.question = item.question;
    button.setAttribute("aria-pressed", "false");
    button.append(Object.assign(new Image(), { src: `${item.photo}&small=1`, alt: item.image }));
    button.onclick = () => button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    return button;
  }));
}

function showSample(item) {
  $("tags").hidden = !item;
  $("ask").textContent = item ? "What is in this photo?" : "";
  $("about").textContent = item ? item.image.split("/").pop() : "";
  if (!item) return;
  showPhoto(item);
  if ($("tags").dataset.row !== String(item.row)) {
    $("tags").dataset.row = item.row;
    here = 0;
    marks = Object.fromEntries(item.tags.map((t) => [t.tag, { 1: "yes", 0: "no" }[t.code] || ""]));
    $("tags").replaceChildren(...item.tags.map((t, i) => tagRow(t.tag, i)));
  }
  showMarks();
}

function tagRow(name, i) {
  const row = Object.assign(document.createElement("div"), { className: "tag" });
  row.dataset.tag = name;
  row.append(Object.assign(document.createElement("span"), { textContent: name }));
  for (const [answer, text] of [["yes", "yes"], ["no", "no"], ["unsure", "?"]]) {
    const button = Object.assign(document.createElement("button"), { className: `set-${answer}`, textContent: text });
    button.setAttribute("aria-label", `${name}: ${answer}`);
    button.onclick = () => { here = i; mark(marks[name] === answer ? "" : answer); };
    row.append(button);
  }
  return row;
}

function mark(answer) {
  const item = queue[0];
  if (!item) return;
  marks[item.tags[here].tag] = answer;
  showMarks();
}

function showMarks() {
  [...$("tags").children].forEach((row, i) => {
    row.dataset.state = marks[row.dataset.tag];
    row.classList.toggle("here", i === here);
    if (i === here) row.scrollIntoView({ block: "nearest" });
  });
}

// ------------------------------------------------------------------------------------------------------ what one does

function answer(word) {
  const item = queue[0];
  if (!item || grid) return;
  queue.shift();
  decide(item, { [item.tag]: word });
  show();
}

function confirmGrid() {
  const cells = [...$("grid").children];
  if (!cells.length || !tag) return;
  const shown = queue.splice(0, cells.length);
  shown.forEach((item, i) => decide(item, { [item.tag]: cells[i].getAttribute("aria-pressed") === "true" ? "yes" : "no" }));
  show();
}

function finishImage() {
  const item = queue.shift();
  if (!item) return;
  decide(item, Object.fromEntries(item.tags.map((t) => [t.tag, marks[t.tag] || "no"])));
  $("tags").dataset.row = "";
  show();
}

function toggleGrid() {
  grid = !grid;
  $("mode").firstChild.textContent = grid ? "One at a time " : "Many at once ";
  for (const id of ["yes", "no", "unsure"]) $(id).hidden = grid;
  $("confirm").hidden = !grid;
  $("grid").hidden = !grid;
  show();
}

const KEYS = SAMPLE ? {
  y: () => { mark("yes"); move(1); }, n: () => { mark("no"); move(1); }, "?": () => { mark("unsure"); move(1); },
  ArrowDown: () => move(1), ArrowUp: () => move(-1), Enter: finishImage, u: undo,
} : {
  y: () => answer("yes"), n: () => answer("no"), "?": () => answer("unsure"), u: undo, g: toggleGrid,
  Enter: () => grid && confirmGrid(),
};

function move(step) {
  if (!queue[0]) return;
  here = Math.min(queue[0].tags.length - 1, Math.max(0, here + step));
  showMarks();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const onButton = event.target instanceof HTMLButtonElement;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if ((key === "Enter" || key === " ") && onButton && !event.target.closest("#grid, #tags")) return;
  if (!KEYS[key]) return;
  event.preventDefault();
  KEYS[key]();
});

addEventListener("beforeunload", (event) => { if (unsent.length) event.preventDefault(); });
addEventListener("focus", loadState);
$("undo").onclick = undo;
if (SAMPLE) $("rest").onclick = finishImage;
else {
  for (const id of ["yes", "no", "unsure"]) $(id).onclick = () => { answer(id); $(id).blur(); };
  $("confirm").onclick = confirmGrid;
  $("mode").onclick = toggleGrid;
}
showSaved();
loadState();
fill();
