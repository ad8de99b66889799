// Forms ask the JSON API, as the command line does. Which may be asked for, the server decides.
//
// data-method, data-path   what is asked; a button's path goes before its form's. In a GET or DELETE, fields are not sent
// data-as                  of a field: number, days and duration (both as seconds), null; text without it, and nothing where it
//                          is empty
// data-file                of a form: its file is the body, of this content type
// data-stream              of a form: the answer is progress, a line at a time
// data-lines               of a form: the answer is a document a line
// data-shows               of a button: its answer is shown, and the page stays
// data-show                of an output: the one field of the answer that it shows, never to be shown again
// data-then                where to go when it is done, with fields of the answer: /launches/{id}
// data-confirm             of a form or its button: the question before

import { again } from "./live.js";

export function listen() {
  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (form.dataset.method === undefined) return;
    event.preventDefault();
    const question = event.submitter?.dataset.confirm ?? form.dataset.confirm;
    if (question !== undefined && !confirm(question)) return;
    send(form, event.submitter);
  });
}

async function send(form, button) {
  const output = form.querySelector("output") ?? form.closest(".actions, .pane, main").querySelector("output.said");
  say(output, "…");
  const buttons = [...form.querySelectorAll("button")];
  buttons.forEach((one) => { one.disabled = true; });
  try {
    const answer = await fetch(...request(form, button));
    if (!answer.ok) throw await refusal(answer);
    const said = form.dataset.stream !== undefined ? await progress(answer, output)
      : form.dataset.lines !== undefined ? await lines(answer) : await whole(answer);
    done(form, button, output, said);
  } catch (error) {
    say(output, error.message, "problem");
  } finally {
    buttons.forEach((one) => { one.disabled = false; });
    if (document.activeElement === document.body) button?.focus();
  }
}

function request(form, button) {
  const { method, file, stream } = form.dataset;
  const path = button?.dataset.path ?? form.dataset.path;
  const headers = { accept: stream === undefined ? "application/json" : "application/x-ndjson" };
  if (method === "GET" || method === "DELETE") return [path, { method, headers }];
  if (file !== undefined) {
    const [chosen] = form.elements.file.files;
    headers["content-type"] = file;
    return [`${path}?${new URLSearchParams({ file: chosen.name })}`, { method, headers, body: chosen }];
  }
  const fields = {};
  for (const field of [...form.elements, button]) {
    if (field === null || field.name === "" || (field.localName === "button" && field !== button)) continue;
    const value = typed(field);
    if (value !== undefined) fields[field.name] = value;
  }
  headers["content-type"] = "application/json";
  return [path, { method, headers, body: JSON.stringify(fields) }];
}

function typed(field) {
  const as = field.dataset.as;
  if (as === "null") return null;
  if (field.value === "") return undefined;
  if (as === "number") return Number(field.value);
  if (as === "days") return Number(field.value) * 86400;
  if (as === "duration") return seconds(field.value);
  return field.value;
}

// 90, 90s, 15m, 2h, 1d.
function seconds(text) {
  const [, number, unit] = /^([0-9.]+)\s*([smhd]?)$/.exec(text.trim()) ?? [];
  if (number === undefined) throw new Error("A time is written as 90s, 15m, 2h or 1d.");
  return Math.round(Number(number) * { "": 1, s: 1, m: 60, h: 3600, d: 86400 }[unit]);
}

async function refusal(answer) {
  const document = await answer.json().catch(() => null);
  if (document?.error === undefined) return new Error(`The appliance answers ${answer.status}.`);
  return new Error(`${document.error}; ${document.hint}`);
}

async function whole(answer) {
  const text = await answer.text();
  return text === "" ? null : JSON.parse(text);
}

async function lines(answer) {
  return (await answer.text()).split("\n").filter((line) => line !== "").map((line) => JSON.parse(line));
}

// Says each step; the last line says how it ended.
async function progress(answer, output) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let last = null;
  for (;;) {
    const { done: isDone, value } = await reader.read();
    if (isDone) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines.filter((one) => one !== "")) {
      last = JSON.parse(line);
      if (last.progress !== undefined) say(output, step(last.progress));
    }
  }
  if (last?.failed !== undefined) throw new Error(`${last.failed.error}; ${last.failed.hint}`);
  if (last?.done === undefined) throw new Error("The connection ended before it was done; it goes on.");
  return last.done;
}

function step({ step: words, bytes }) {
  return bytes === undefined ? words : `${words}, ${(bytes / 1048576).toFixed(1)} MiB`;
}

function done(form, button, output, said) {
  const next = form.dataset.then;
  const shows = button?.dataset.shows !== undefined;
  if (next !== undefined && !shows) {
    location.assign(next.replace(/\{(\w+)\}/g, (_, field) => encodeURIComponent(said?.[field] ?? "")));
    return;
  }
  const secretly = output.dataset.show;
  if (secretly !== undefined) {
    const secret = document.createElement("code");
    secret.className = "secret";
    secret.textContent = said[secretly];
    output.replaceChildren("Copy it now: ", secret);
    form.reset();
  } else if (form.dataset.method === "GET" || shows || form.dataset.lines !== undefined) {
    output.replaceChildren(shown(said));
  } else {
    say(output, "Done.", "done");
    if (form.dataset.stream !== undefined) form.reset();
    // It is no news once the page shows it.
    setTimeout(() => {
      if (output.textContent === "Done.") output.replaceChildren();
    }, 4000);
  }
  again();
}

// A document as names and values, and a list of them as a table.
function shown(value, depth = 0) {
  if (value === null || typeof value !== "object" || depth > 4) return document.createTextNode(value === null ? "-" : String(value));
  if (Array.isArray(value) && value.length > 0 && value.every((entry) => entry !== null && typeof entry === "object")) {
    return table(value.slice(0, 1000), depth);
  }
  if (Array.isArray(value)) {
    const list = document.createElement("ul");
    list.className = "plain";
    for (const entry of value.slice(0, 500)) {
      const item = document.createElement("li");
      item.append(shown(entry, depth + 1));
      list.append(item);
    }
    return list;
  }
  const fields = document.createElement("dl");
  fields.className = depth === 0 ? "fields" : "inline";
  for (const [name, one] of Object.entries(value)) {
    const term = document.createElement("dt");
    term.textContent = name.replaceAll("-", " ");
    const description = document.createElement("dd");
    description.append(shown(one, depth + 1));
    fields.append(term, description);
  }
  return fields;
}

function table(entries, depth) {
  const columns = [...new Set(entries.flatMap((entry) => Object.keys(entry)))];
  const made = document.createElement("table");
  made.className = "small";
  const head = made.createTHead().insertRow();
  for (const column of columns) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = column.replaceAll("-", " ");
    head.append(cell);
  }
  const body = made.createTBody();
  for (const entry of entries) {
    const row = body.insertRow();
    for (const column of columns) row.insertCell().append(column in entry ? shown(entry[column], depth + 1) : "");
  }
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  scroll.append(made);
  return scroll;
}

function say(output, text, kind) {
  output.classList.remove("problem", "done");
  if (kind !== undefined) output.classList.add(kind);
  output.textContent = text;
}
