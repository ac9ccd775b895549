"use strict";
// A conversation with the model behind /v1: what it writes is text, never markup. A token is what follows # in the address.
const byId = (id) => document.getElementById(id);
const token = location.hash.slice(1);
const headers = { "Content-Type": "application/json", ...(token && { Authorization: `Bearer ${token}` }) };
let messages = [];
let running = null;

function show(kind, text) {
  const turn = document.createElement("div");
  turn.className = `turn ${kind}`;
  turn.textContent = text;
  byId("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  return turn;
}

async function* events(response) {
  let text = "";
  for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
    text += part;
    const whole = text.split("\n\n");
    text = whole.pop();
    for (const event of whole) yield event.replace(/^data: /, "");
  }
}

async function answer() {
  running = new AbortController();
  const body = JSON.stringify({ messages, stream: true });
  let said = "", turn = null, thought = null;
  try {
    const response = await fetch("v1/chat/completions", { method: "POST", headers, body, signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event === "[DONE]") break;
      const data = JSON.parse(event);
      if (data.error) throw new Error(data.error.message);
      const delta = data.choices[0]?.delta ?? {};
      if (delta.reasoning_content) (thought ??= show("thought", "")).textContent += delta.reasoning_content;
      if (delta.content) (turn ??= show("assistant", "")).textContent = said += delta.content;
    }
  } catch (error) {
    if (error.name !== "AbortError") show("error", error.message);
  }
  messages.push({ role: "assistant", content: said });
  running = null;
}

function reading(yes) {
  byId("send").hidden = yes;
  byId("stop").hidden = !yes;
}

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = byId("message").value.trim();
  if (!text || running) return;
  byId("message").value = "";
  messages.push({ role: "user", content: text });
  show("user", text);
  reading(true);
  await answer();
  reading(false);
});
byId("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("form").requestSubmit();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("new").addEventListener("click", () => {
  running?.abort();
  messages = [];
  byId("turns").replaceChildren();
});
fetch("v1/models", { headers }).then(async (response) => {
  const id = response.ok ? (await response.json()).data[0].id : "This page lacks the token after # in its address";
  byId("name").textContent = document.title = id;
});
