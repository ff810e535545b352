// First tags: type or pick the classes of a photo. Every tag is sent as soon as it is given.
"use strict";

const names = new Map(); // classes and how often they are given
const seen = [];         // photos that were shown before this one

function learnClasses(classes) {
  for (const c of classes) names.set(c.tag, c.total);
  if (queue[0]) showTagging(queue[0]);
}

const cellOf = (item, name) => item.tags.find((t) => t.tag === name);
const given = (item) => item.tags.filter((t) => t.code === 1).map((t) => t.tag);

function give(name, on) {
  const item = queue[0];
  if (!item) return;
  let cell = cellOf(item, name);
  if (!cell) item.tags.push(cell = { tag: name, version: 0, code: -1 });
  if ((cell.code === 1) === on) { $("find").value = ""; showTagging(item); return; }
  unsent.push({ id: newId(), row: item.row, answers: { [name]: on ? "yes" : "clear" }, versions: { [name]: cell.version } });
  Object.assign(cell, { version: cell.version + 1, code: on ? 1 : -1 });
  names.set(name, Math.max(0, (names.get(name) || 0) + (on ? 1 : -1)));
  $("find").value = "";
  showTagging(item);
  send();
}

const all = () => [...seen, ...queue];

function hearTag(outcome) { // what the server has counts
  hear(outcome);
  const item = all().find((i) => i.image === outcome.image);
  if (!item) return;
  for (const [name, cell] of Object.entries(outcome.cells)) {
    const waiting = unsent.filter((d) => d.row === item.row && name in d.answers).length > 1;
    if (!cellOf(item, name)) item.tags.push({ tag: name, version: cell.version, code: cell.code });
    else if (!waiting) Object.assign(cellOf(item, name), { version: cell.version, code: cell.code });
  }
  if (item === queue[0]) showTagging(item);
}

function takeBack(refused) {
  const item = all().find((i) => i.row === refused.row);
  for (const name of Object.keys(refused.answers)) {
    if (!item) continue;
    item.tags = item.tags.filter((t) => t.tag !== name);
    if (names.get(name) <= 1) names.delete(name);
  }
  if (item && item === queue[0]) showTagging(item);
}

function undone(outcome) {
  if (outcome.status === "conflict") { toast(`${changed(outcome)}; it stays`); return; }
  const name = Object.keys(outcome.cells)[0];
  if (!all().some((i) => i.image === outcome.image)) { toast(`taken back: ${name} in ${outcome.image}`); loadState(); return; }
  while (queue[0]?.image !== outcome.image && seen.length) queue.unshift(seen.pop());
  const item = queue[0], cell = item && cellOf(item, name);
  if (cell) Object.assign(cell, { version: outcome.cells[name].version, code: outcome.cells[name].code });
  toast(`taken back: ${name}`);
  show();
  loadState();
}

function next() {
  if (!queue[0]) return;
  seen.push(queue.shift());
  $("find").value = "";
  show();
}

function back() {
  if (seen.length) queue.unshift(seen.pop());
  show();
}

function matching() { // classes that the typed text can mean, the best first
  const text = $("find").value.trim().toLowerCase();
  const found = [...names.keys()].filter((name) => name.toLowerCase().includes(text));
  const rank = (name) => (name.toLowerCase() === text ? 0 : name.toLowerCase().startsWith(text) ? 1 : 2);
  return text ? found.sort((a, b) => rank(a) - rank(b)) : found;
}

function showTagging(item) {
  for (const id of ["find", "tags", "given"]) $(id).hidden = !item;
  $("ask").textContent = item ? "What is in this photo?" : "";
  $("about").textContent = item ? item.image.split("/").pop() : "";
  if (!item) return;
  showPhoto(item);
  const mine = given(item);
  $("given").replaceChildren(...mine.map((name) => pill(name, `${name} \u00d7`, () => give(name, false), `take ${name} away`)));
  const text = $("find").value.trim(), found = matching();
  const buttons = found.slice(0, 60).map((name, i) => {
    const button = pill(name, name, () => give(name, !mine.includes(name)));
    button.setAttribute("aria-pressed", String(mine.includes(name)));
    if (i < 9 && !text) button.append(key(i + 1));
    if (text && name === meant(text)) button.append(key("Enter"));
    return button;
  });
  if (text && !names.has(text)) {
    const button = pill(text, `new class: ${text}`, () => give(text, true));
    button.append(key(meant(text) === text ? "Enter" : "Shift Enter"));
    buttons.push(button);
  }
  $("tags").replaceChildren(...buttons);
  if (matchMedia("(pointer: fine)").matches && document.activeElement !== $("find")) $("find").focus();
}

const key = (text) => Object.assign(document.createElement("kbd"), { textContent: text });

function pill(name, text, click, label) {
  const button = Object.assign(document.createElement("button"), { className: "pill", textContent: text, onclick: click });
  button.dataset.tag = name;
  if (label) button.setAttribute("aria-label", label);
  return button;
}

function tagKey(event) {
  const typed = event.target === $("find") ? $("find").value.trim() : "";
  const item = queue[0], control = event.ctrlKey || event.metaKey;
  if (control && event.key === "z" && !typed) undo();
  else if (control || event.altKey || event.isComposing) return;
  else if (event.key === "PageUp") back();
  else if (event.target instanceof HTMLButtonElement && (event.key === "Enter" || event.key === " ")) return;
  else if (event.repeat && event.key === "Enter") { /* held down: one photo is enough */ }
  else if (event.key === "Enter" && !typed) next();
  else if (event.key === "Enter") give(event.shiftKey ? typed : meant(typed), true);
  else if (event.key === "Backspace" && !typed && item && given(item).length) give(given(item).at(-1), false);
  else if (!typed && /^[1-9]$/.test(event.key) && matching()[event.key - 1]) {
    const name = matching()[event.key - 1];
    give(name, !given(item).includes(name));
  } else return;
  event.preventDefault();
}

// What Enter takes: the class itself, or the first that begins so, or a new one
const meant = (text) => (names.has(text) ? text
  : matching().find((name) => name.toLowerCase().startsWith(text.toLowerCase())) || text);

$("find").oninput = () => queue[0] && showTagging(queue[0]);
$("next").onclick = next;
$("back").onclick = back;
