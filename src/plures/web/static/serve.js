"use strict";

const element = (id) => document.getElementById(id);
const percent = (score) => `${Math.round(100 * score)} %`;

function say(text, bad = false) {
  element("message").textContent = text;
  element("message").classList.toggle("bad", bad);
}

/** One photo after another, so that one that cannot be read does not take the others with it. */
async function show(files) {
  const photos = [...files];
  if (!photos.length) return;
  let done = 0;
  const troubles = [];
  for (const file of photos) {
    say(photos.length > 1 ? `Looking at photo ${done + 1} of ${photos.length} ...` : "Looking ...");
    try {
      add(file, await ask(file));
    } catch (trouble) {
      troubles.push(trouble.message);
    }
    done += 1;
  }
  say(troubles.join(" "), troubles.length > 0);
  element("file").value = "";
}

async function ask(file) {
  const form = new FormData();
  form.append("photos", file, file.name || "photo");
  let response;
  try {
    response = await fetch("predict?maps=true", { method: "POST", body: form });
  } catch {
    throw new Error("The server does not answer.");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer.photos[0];
}

function add(file, photo) {
  const article = element("photo").content.cloneNode(true).firstElementChild;
  const find = (selector) => article.querySelector(selector);
  const address = URL.createObjectURL(file);
  find(".picture").src = address;
  find(".picture").alt = `${photo.name}: ${photo.tags.join(", ") || "no tag"}`;
  find("figcaption").textContent = `${photo.name}, ${photo.width} x ${photo.height}`;
  for (const tag of photo.tags) find(".tags").append(button(tag, photo, article));
  if (!photo.tags.length) {
    find(".tags").textContent = "No tag: no class reaches its threshold.";
    find(".hint").remove();
    find("details").open = true;
  }
  const order = Object.entries(photo.scores).sort((a, b) => b[1] - a[1]);
  for (const [name, score] of order) find("ol").append(bar(name, score));
  element("photos").prepend(article);
}

function button(tag, photo, article) {
  const made = document.createElement("button");
  made.type = "button";
  made.setAttribute("aria-pressed", "false");
  const score = document.createElement("small");
  score.textContent = percent(photo.scores[tag]);
  made.append(`${tag} `, score);
  made.disabled = !photo.maps?.[tag];
  made.addEventListener("click", () => {
    const on = made.getAttribute("aria-pressed") !== "true";
    for (const other of article.querySelectorAll(".tags button")) other.setAttribute("aria-pressed", "false");
    made.setAttribute("aria-pressed", String(on));
    const heat = article.querySelector(".heat");
    heat.hidden = !on;
    if (on) heat.src = photo.maps[tag];
  });
  return made;
}

function bar(name, score) {
  const row = document.createElement("li");
  const label = document.createElement("span");
  label.textContent = label.title = name;
  const progress = document.createElement("progress");
  progress.value = score;
  progress.setAttribute("aria-label", name);
  const number = document.createElement("output");
  number.textContent = percent(score);
  row.append(label, progress, number);
  return row;
}

element("file").addEventListener("change", (event) => show(event.target.files));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", () => document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  show(event.dataTransfer.files);
});
addEventListener("paste", (event) => show(event.clipboardData.files));
fetch("health")
  .then((response) => response.json())
  .then((health) => {
    element("model").textContent = `${health.model}: ${health.classes} classes, plures ${health.plures}`;
  })
  .catch(() => say("The server does not answer.", true));
