"use strict";
// Search, copy and try. The key lives in its input field: nothing is stored, and only this server is called.

const MAX_SHOWN = 100_000; // characters of an answer; more would freeze the page
const search = document.getElementById("search");

search.addEventListener("input", () => {
  const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const group of document.querySelectorAll("nav .group")) {
    let left = 0;
    for (const item of group.querySelectorAll("li")) {
      const section = document.getElementById(item.firstChild.hash.slice(1));
      const text = `${item.textContent} ${section.querySelector(".call").textContent}`.toLowerCase();
      const fits = wanted.every((word) => text.includes(word));
      item.hidden = section.hidden = !fits;
      left += fits;
    }
    group.hidden = left === 0;
    found += left;
  }
  document.getElementById("nothing").hidden = found > 0;
});

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    search.focus();
  }
});

document.addEventListener("click", async (event) => {
  if (!event.target.matches(".copy")) return;
  const pre = event.target.closest("figure").querySelector("pre");
  event.target.textContent = (await copied(pre)) ? "Copied" : "Press Ctrl+C";
  setTimeout(() => { event.target.textContent = "Copy"; }, 1500);
});

document.getElementById("access")?.addEventListener("submit", (event) => event.preventDefault());

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.dataset.path) return;
  event.preventDefault();
  const shown = form.nextElementSibling;
  const stop = form.querySelector(".stop");
  const control = new AbortController();
  stop.onclick = () => control.abort();
  stop.hidden = false;
  try {
    await send(form, shown, control.signal);
  } catch (error) {
    if (error.name !== "AbortError") shown.append(line(`No answer: ${error.message}`, "bad"));
  } finally {
    stop.hidden = true;
  }
});

async function copied(pre) {
  getSelection().selectAllChildren(pre);
  if (!navigator.clipboard) return false; // a page without TLS, but for localhost
  try {
    await navigator.clipboard.writeText(pre.textContent);
    return true;
  } catch {
    return false;
  }
}

async function send(form, shown, signal) {
  const began = performance.now();
  shown.replaceChildren(line("Sending ..."));
  const answer = await fetch(address(form), { method: form.dataset.method, ...content(form), signal, cache: "no-store" });
  const milliseconds = Math.round(performance.now() - began);
  const id = answer.headers.get("x-request-id") ?? "none";
  const status = line(`${answer.status} ${answer.statusText} in ${milliseconds} ms, request id ${id}`);
  status.className = answer.ok ? "good" : "bad";
  const text = document.createElement("pre");
  shown.replaceChildren(status, text);
  await show(answer, text);
}

// Relative to this page: a gateway may show both below a path of its own.
function address(form) {
  const query = new URLSearchParams();
  let path = form.dataset.path;
  for (const input of form.querySelectorAll("input[data-in=path], input[data-in=query]")) {
    const value = input.value;
    if (input.dataset.in === "path") path = path.replace(`{${input.name}}`, encodeURIComponent(value));
    else if (value !== "" && input.name === "metadata") addMetadata(query, value);
    else if (value !== "") query.append(input.name, value);
  }
  return query.size ? `${path}?${query}` : path;
}

// "null", or {"key": "value"} as metadata[key]=value
function addMetadata(query, text) {
  if (text === "null") query.append("metadata", "null");
  else for (const [key, value] of Object.entries(JSON.parse(text))) query.append(`metadata[${key}]`, value);
}

function content(form) {
  const key = document.getElementById("key").value.trim();
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  for (const input of form.querySelectorAll("input[data-in=header]")) if (input.value) headers[input.name] = input.value;
  const media = form.dataset.media;
  if (!media) return { headers };
  if (media === "multipart/form-data") return { headers, body: fields(form) };
  const raw = form.querySelector("[data-in=raw]");
  const body = raw ? raw.files[0] : form.querySelector("[data-in=json]").value;
  return { headers: { ...headers, "Content-Type": media }, body };
}

function fields(form) {
  const data = new FormData();
  for (const input of form.querySelectorAll("[data-in=form]")) {
    if (input.type === "file") { if (input.files[0]) data.append(input.name, input.files[0]); }
    else if (input.value) data.append(input.name, input.value);
  }
  return data;
}

async function show(answer, text) {
  const kind = answer.headers.get("content-type") ?? "";
  if (kind.startsWith("text/event-stream")) return follow(answer, text);
  if (!kind.includes("json") && !kind.startsWith("text/")) {
    const size = (await answer.blob()).size;
    text.textContent = `${size.toLocaleString("en")} bytes of ${kind || "nothing"}`;
    return;
  }
  const body = await answer.text();
  text.textContent = shortened(kind.startsWith("application/json") ? pretty(body) : body);
}

async function follow(answer, text) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    text.textContent = (text.textContent + part.value).slice(-MAX_SHOWN);
    text.scrollTop = text.scrollHeight;
  }
}

function pretty(body) {
  try { return JSON.stringify(JSON.parse(body), null, 2); } catch { return body; }
}

function shortened(body) {
  return body.length > MAX_SHOWN ? `${body.slice(0, MAX_SHOWN)}\n... ${body.length - MAX_SHOWN} more characters` : body;
}

function line(text, name = "") {
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  paragraph.className = name;
  return paragraph;
}
