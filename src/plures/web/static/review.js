// The review page. Answers go into `unsent` and from there to the server, one request at a time and in order; an answer
// leaves `unsent` only once the server has said what became of it, so a lost connection loses nothing.
"use strict";

const $ = (id) => document.getElementById(id);
const SAMPLE = document.body.dataset.mode === "sample", TAGGING = document.body.dataset.mode === "tagging";
const AHEAD = 20, GRID = 12, RETRY_MS = 1000;
const TAB = sessionStorage.tab || (sessionStorage.tab = newId());

let queue = [];        // questions (or images of the sample) not answered yet, the first is shown
let unsent = [];       // decisions that the server has not acknowledged
let history = [];      // items that this tab has answered
let tag = "";          // the class that is asked for, "" for all
let grid = false, sending = false, filling = null, exhausted = false, generation = 0;
let lastRow = -1;      // of the photos to tag, that the server has sent
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
  try { const told = JSON.parse(text); detail = told.detail || told.error; } catch { /* plain text */ }
  throw Object.assign(new Error(typeof detail === "string" ? detail : "refused"), { status: answer.status });
}

// ---------------------------------------------------------------------------------------------- what comes from there

const nameOf = (item) => (SAMPLE || TAGGING ? item.row : item.question);

async function fill() {
  if (filling) return filling;
  const mine = generation;
  filling = (async () => {
    try {
      const have = [...queue.map(nameOf), ...unsent.map((d) => (SAMPLE ? d.row : d.question))];
      const path = TAGGING ? `/api/items?limit=${AHEAD}&after=${lastRow}` : `/api/items?limit=${AHEAD}&tag=${encodeURIComponent(tag)}&skip=${have.join(",")}`;
      const found = await call(path);
      if (mine !== generation) return;
      queue.push(...found);
      if (TAGGING && found.length) lastRow = found.at(-1).row;
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

function decide(item, answers, batch = "") {
  const versions = SAMPLE ? Object.fromEntries(item.tags.map((t) => [t.tag, t.version])) : { [item.tag]: item.version };
  const target = SAMPLE ? { row: item.row, rest: "no" } : { question: item.question, batch };
  unsent.push({ id: newId(), ...target, answers, versions });
  history.push(item);
  send();
}

async function send() {
  if (sending) return;
  sending = true;
  let most = TAGGING ? 1 : 50; // a tag may be given and cleared again at once
  while (unsent.length) {
    showSaved();
    const batch = unsent.slice(0, most);
    try {
      const outcomes = await call("/api/decisions", { tab: TAB, decisions: batch });
      outcomes.forEach(TAGGING ? hearTag : hear);
      unsent = unsent.slice(batch.length);
      online();
    } catch (error) {
      if (error.status !== 400 && error.status !== 422) {
        offline(error);
        await new Promise((done) => setTimeout(done, RETRY_MS));
      } else if (batch.length > 1) most = 1; // none was kept: find the one that is refused
      else {
        const refused = unsent.shift();
        if (TAGGING) takeBack(refused);
        history = history.filter((item) => nameOf(item) !== (SAMPLE ? refused.row : refused.question));
        toast(`An answer was not kept: ${error.message}`);
      }
    }
  }
  sending = false;
  showSaved();
  loadState();
}

const CODE = { 1: "present", 0: "absent", "-1": "unknown" };

function changed(outcome) {
  const [name, cell] = Object.entries(outcome.cells).find(([, c]) => c.by_hand) || Object.entries(outcome.cells)[0];
  const what = cell.by_hand ? `was set to ${CODE[cell.code]} in the table itself`
    : cell.answer ? `is answered "${cell.answer}" in another tab` : "was taken back in another tab";
  return `${name} in ${outcome.image} ${what}`;
}

function hear(outcome) {
  if (outcome.status === "conflict") toast(`${changed(outcome)}; your answer was not counted`);
  else if (!SAMPLE && !TAGGING) { // what followed from it is answered, too
    const before = queue.length;
    queue = queue.filter((item) => item.image !== outcome.image || !outcome.cells[item.tag]?.answer);
    if (queue.length < before) show();
  }
}

async function undo() {
  if (unsent.length) { toast("still saving; try again in a moment"); return; }
  try {
    const outcomes = await call("/api/undo", { tab: TAB, id: newId() });
    if (outcomes[0].status === "nothing") { toast("nothing to undo"); return; }
    if (TAGGING) { outcomes.slice(1).forEach(hearTag); undone(outcomes[0]); return; }
    const kept = outcomes.filter((o) => o.status === "kept"), lost = outcomes.filter((o) => o.status === "conflict");
    let known = true;
    for (const outcome of kept) {
      const at = history.findLastIndex((i) => i.image === outcome.image && (SAMPLE || i.tag in outcome.cells));
      if (at < 0) { known = false; continue; }
      const [item] = history.splice(at, 1);
      if (SAMPLE) item.tags.forEach((t) => Object.assign(t, outcome.cells[t.tag]));
      else Object.assign(item, outcome.cells[item.tag]);
      if (SAMPLE || !tag || tag === item.tag) queue.unshift(item);
    }
    if (known) show(); else refill();
    const first = kept[0], more = kept.length > 1 ? ` and ${kept.length - 1} more` : "";
    const back = first ? `taken back: ${SAMPLE ? first.image : Object.keys(first.cells)[0]}${more}. ` : "";
    toast(back + (lost.length ? `Not taken back: ${changed(lost[0])}` : ""));
    loadState();
  } catch (error) { offline(error); }
}

// ------------------------------------------------------------------------------------------------------ what one sees

function offline(error) {
  const waiting = unsent.length ? ` ${unsent.length} answer${unsent.length > 1 ? "s wait" : " waits"} here, to be sent as soon as it does.` : "";
  $("banner").textContent = error.status ? `${error.message}${unsent.length ? ` (${unsent.length} to be saved; trying again)` : ""}`
    : `The server does not answer.${waiting}`;
  $("banner").hidden = false;
}

function online() { $("banner").hidden = true; }

function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => { $("toast").hidden = true; }, 2500 + 60 * text.length);
}

function showSaved() { $("saved").textContent = unsent.length ? `saving ${unsent.length}` : "saved"; }

function showProgress() {
  $("progress").max = Math.max(1, state.total);
  $("progress").value = state.done;
  $("count").textContent = `${state.done.toLocaleString("en")} of ${state.total.toLocaleString("en")}`;
  if (state.failure) { $("banner").textContent = `The table could not be written (the answers are safe): ${state.failure}`; $("banner").hidden = false; }
  if (TAGGING) learnClasses(state.classes);
  if (SAMPLE || TAGGING) return;
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
  if (!item && exhausted) $("end").textContent = tag ? `All of "${tag}" is answered. Choose another class.` : `${TAGGING ? "These were all photos without a tag." : "All is answered."} The table is up to date; you can close this page.`;
  $("pictures").hidden = grid || !item;
  $("actions").dataset.empty = String(!item);
  if (TAGGING) showTagging(item); else if (SAMPLE) showSample(item); else if (grid) showGrid(); else showOne(item);
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
  $("ask").textContent = !shown.length ? "" : tag ? `Which show ${tag}?` : "Which of these are right?";
  $("about").textContent = shown.length ? "Click to change; the likely ones are selected" : "";
  $("grid").hidden = !shown.length;
  $("confirm").disabled = !shown.length;
  const key = shown.map(nameOf).join() + tag;
  if ($("grid").dataset.key !== key) {
    $("grid").dataset.key = key;
    $("grid").replaceChildren(...shown.map(gridCell));
    $("grid").scrollTop = 0;
  }
  showGridMarks();
}

function gridCell(item) {
  item.mark ||= item.likely ? "yes" : "no";
  const cell = Object.assign(document.createElement("div"), { className: "cell", item });
  const photo = Object.assign(document.createElement("button"), { className: "pick", title: item.image });
  photo.dataset.question = item.question;
  photo.append(Object.assign(new Image(), { src: `${item.photo}&small=1`, alt: `${item.tag}? ${item.image}` }));
  photo.onclick = () => markCell(cell, item.mark === "yes" ? "no" : "yes");
  const caption = Object.assign(document.createElement("span"), { className: "caption", textContent: tag ? "" : item.tag });
  const unsure = Object.assign(document.createElement("button"), { className: "unsure", textContent: "?", title: "not sure" });
  unsure.setAttribute("aria-label", `${item.tag} in ${item.image}: not sure`);
  unsure.onclick = () => markCell(cell, item.mark === "unsure" ? "no" : "unsure");
  cell.append(photo, caption, unsure);
  return cell;
}

function markCell(cell, mark) {
  cell.item.mark = mark;
  showGridMarks();
}

function showGridMarks() {
  const count = { yes: 0, no: 0, unsure: 0 };
  for (const cell of $("grid").children) {
    const mark = cell.item.mark;
    count[mark] += 1;
    cell.dataset.state = mark;
    cell.querySelector(".pick").setAttribute("aria-pressed", String(mark === "yes"));
    cell.querySelector(".unsure").setAttribute("aria-pressed", String(mark === "unsure"));
  }
  $("confirm").firstChild.textContent = `Keep: ${count.yes} yes, ${count.no} no${count.unsure ? `, ${count.unsure} not sure` : ""} `;
}

function showSample(item) {
  $("tags").hidden = $("find").hidden = !item;
  $("ask").textContent = item ? "What is in this photo?" : "";
  $("about").textContent = item ? item.image.split("/").pop() : "";
  if (!item) return;
  showPhoto(item);
  if ($("tags").dataset.row !== String(item.row)) {
    $("tags").dataset.row = item.row;
    here = 0;
    marks = Object.fromEntries(item.tags.map((t) => [t.tag, known(t)]));
    $("find").value = "";
    $("tags").replaceChildren(...item.tags.map(tagRow));
    $("tags").scrollTop = 0;
  }
  showMarks();
}

const known = (t) => ({ 1: "yes", 0: "no" })[t.code] || "";

function tagRow(t, i) {
  const row = Object.assign(document.createElement("div"), { className: "tag" });
  row.dataset.tag = t.tag;
  row.append(Object.assign(document.createElement("span"), { className: "name", textContent: t.tag }));
  if (known(t)) row.append(Object.assign(document.createElement("span"), { className: "known", textContent: `known: ${known(t)}` }));
  for (const [answer, text] of [["yes", "yes"], ["no", "no"], ["unsure", "?"]]) {
    const button = Object.assign(document.createElement("button"), { className: `set-${answer}`, textContent: text });
    button.dataset.answer = answer;
    button.setAttribute("aria-label", `${t.tag}: ${answer === "unsure" ? "not sure" : answer}`);
    button.onclick = () => { here = i; mark(marks[t.tag] === answer ? known(t) : answer); }; // back to what is known
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
    const state = marks[row.dataset.tag];
    row.dataset.state = state;
    row.classList.toggle("here", i === here);
    for (const button of row.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.answer === state));
    if (i === here) row.scrollIntoView({ block: "nearest" });
  });
}

function find() {
  const text = $("find").value.trim().toLowerCase();
  const rows = [...$("tags").children];
  for (const row of rows) row.hidden = !row.dataset.tag.toLowerCase().includes(text);
  const best = rows.findIndex((row) => row.dataset.tag.toLowerCase().startsWith(text) && !row.hidden);
  here = Math.max(0, best >= 0 ? best : rows.findIndex((row) => !row.hidden));
  showMarks();
}

function findKey(event) {
  if (event.key === "Escape") { $("find").value = ""; find(); $("find").blur(); }
  else if (event.key === "Enter" && !$("find").value.trim()) finishImage();
  else if (event.key === "Enter") {
    const found = [...$("tags").children].some((row) => !row.hidden);
    if (found) mark("yes"); else { toast(`no class "${$("find").value}"`); return; }
    const now = here;
    $("find").value = "";
    find();
    here = now;
    showMarks();
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") { $("find").blur(); step(event.key === "ArrowDown" ? 1 : -1); }
  else return;
  event.preventDefault();
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
  if (!cells.length) return;
  const batch = newId(), shown = queue.splice(0, cells.length);
  shown.forEach((item) => decide(item, { [item.tag]: item.mark }, batch));
  $("grid").dataset.key = "";
  show();
}

function finishImage() {
  const item = queue.shift();
  if (!item) return;
  decide(item, Object.fromEntries(Object.entries(marks).filter(([, answer]) => answer))); // the rest: absent if unknown
  $("tags").dataset.row = "";
  show();
}

function toggleGrid() {
  grid = !grid;
  $("mode").firstChild.textContent = grid ? "One at a time " : "Many at once ";
  for (const id of ["yes", "no", "unsure"]) $(id).hidden = grid;
  $("confirm").hidden = !grid;
  $("grid").hidden = !grid;
  $("grid").dataset.key = "";
  show();
}

function columns(grid) { return getComputedStyle(grid).gridTemplateColumns.split(" ").length; }

function step(by) { // to another class of the sample; those that are not shown are passed over
  const rows = [...$("tags").children], shown = rows.map((row, i) => i).filter((i) => !rows[i].hidden);
  if (!queue[0] || !shown.length) return;
  const to = shown.indexOf(here) + by;
  if (to >= 0 && to < shown.length) here = shown[to];
  showMarks();
}

function stepGrid(by) {
  const cells = [...$("grid").children], at = cells.indexOf(document.activeElement?.closest(".cell"));
  const to = at < 0 ? 0 : at + by;
  cells[to]?.querySelector(".pick").focus();
}

function say(word) {
  if (!grid) return answer(word);
  const cell = document.activeElement?.closest(".cell");
  if (cell) markCell(cell, word);
}

const markAndStep = (word) => { mark(word); step(1); };
const KEYS = SAMPLE ? {
  y: () => markAndStep("yes"), n: () => markAndStep("no"), "?": () => markAndStep("unsure"),
  ArrowDown: () => step(columns($("tags"))), ArrowUp: () => step(-columns($("tags"))),
  ArrowRight: () => step(1), ArrowLeft: () => step(-1), Enter: finishImage, u: undo, "/": () => $("find").focus(),
} : {
  y: () => say("yes"), n: () => say("no"), "?": () => say("unsure"), u: undo, g: toggleGrid,
  ArrowDown: () => grid && stepGrid(columns($("grid"))), ArrowUp: () => grid && stepGrid(-columns($("grid"))),
  ArrowRight: () => grid && stepGrid(1), ArrowLeft: () => grid && stepGrid(-1), Enter: () => grid && confirmGrid(),
};

document.addEventListener("keydown", (event) => {
  if (TAGGING) { tagKey(event); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === $("find")) { findKey(event); return; }
  if (event.repeat && !event.key.startsWith("Arrow")) return;
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
if (SAMPLE) {
  $("rest").onclick = finishImage;
  $("find").oninput = find;
} else if (!TAGGING) {
  for (const id of ["yes", "no", "unsure"]) $(id).onclick = () => { answer(id); $(id).blur(); };
  $("confirm").onclick = confirmGrid;
  $("mode").onclick = toggleGrid;
}
addEventListener("DOMContentLoaded", () => { // the script of first tags is there then, too
  showSaved();
  loadState();
  fill();
});
