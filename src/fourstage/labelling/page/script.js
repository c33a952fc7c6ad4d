"use strict";
// Everything a model wrote is set as text, never as HTML.

const byId = (id) => document.getElementById(id);
let state = null;
let busy = false;

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function say(words) {
  byId("note").textContent = words;
}

function show(next) {
  state = next;
  byId("count").textContent = `${state.done} of ${state.total}`;
  byId("progress").value = state.total ? state.done / state.total : 0;
  byId("labeller").textContent = state.labeller;
  byId("prompt").replaceChildren(...state.turns.map((turn) => {
    const box = element("div", "turn");
    box.append(element("div", "role", turn.role), element("div", "text", turn.content));
    return box;
  }));
  byId("completions").replaceChildren(...state.texts.map((text, place) => {
    const button = element("button", "completion");
    button.type = "button";
    button.append(element("kbd", "", String(place + 1)), element("span", "text", text));
    button.addEventListener("click", () => answer("best", place));
    return button;
  }));
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.disabled = !state.texts.length;
  }
  say(state.texts.length ? "Which is best?" : "Everything is labelled. Press “Stop here” to finish.");
  window.scrollTo(0, 0);
}

async function post(path, body) {
  if (busy) return;
  busy = true;
  try {
    const reply = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    const told = await reply.json();
    if (told.state) show(told.state);
    if (told.note) say(told.note);
    if (told.stopped) stopped();
  } catch (error) {
    say(`Not saved: ${error.message}. Is fourstage label still running?`);
  } finally {
    busy = false;
  }
}

function answer(verdict, place) {
  if (!state || !state.texts.length) return;
  const body = { version: state.version, verdict };
  if (place !== undefined) body.place = place;
  post("answer", body);
}

function stopped() {
  state = null;
  byId("prompt").replaceChildren();
  byId("completions").replaceChildren();
  document.querySelector("footer").hidden = true;
  say("Stopped. Everything is saved; this page can be closed.");
}

for (const button of document.querySelectorAll("[data-verdict]")) {
  button.addEventListener("click", () => answer(button.dataset.verdict));
}
byId("undo").addEventListener("click", () => state && post("undo", { version: state.version }));
byId("finish").addEventListener("click", () => post("finish", {}));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const place = Number(event.key) - 1;
  if (state && Number.isInteger(place) && place >= 0 && place < state.texts.length) {
    answer("best", place);
    return;
  }
  const button = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
  if (button) button.click();
});

fetch("state").then((reply) => reply.json()).then((told) => show(told.state))
  .catch((error) => say(`Cannot reach fourstage label: ${error.message}`));
