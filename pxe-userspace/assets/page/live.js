// Keeps a page up to date from the server's one stream of events.
//
// The server says what changed, as text for places that the page has: rows of machines, parts of pictures, lists. Nothing
// that it says is markup. Where that is not enough (another machine is there now, some changes were missed), the page is
// fetched again in the background, and its parts that are marked `data-live` take the place of those that are shown.

import { Screens } from "./lines.js";

const AGAIN_AT_MOST_EVERY = 1000;

let places = new Map();
let screens;
let wanted = false;
let running = false;
// Patches that arrived while the page is fetched: what is fetched may be older than they are.
let meanwhile = [];

export function start() {
  const { after, of } = document.body.dataset;
  index();
  if (after === undefined) return;
  screens = new Screens();
  connect(after, of);
}

// Fetches the page's live parts again, now and at most once a second.
export function again() {
  wanted = true;
  if (running) return;
  running = true;
  fetchAgain();
}

function connect(after, of) {
  const query = new URLSearchParams({ follow: "1", after });
  if (of !== undefined) query.set("of", of);
  const source = new EventSource(`/live?${query}`);
  let last = after;
  const on = (name, what) => source.addEventListener(name, (event) => {
    if (event.lastEventId !== "") last = event.lastEventId;
    what(JSON.parse(event.data));
  });
  on("patch", apply);
  on("anew", again);
  on("tail", (said) => screens.replace(said));
  on("lines", (said) => screens.add(said));
  source.addEventListener("open", () => connected(""));
  source.addEventListener("error", () => {
    connected("No connection: trying again");
    if (source.readyState !== EventSource.CLOSED) return;
    // The browser gives up where the answer is an error. The daemon may be starting, or want a login.
    setTimeout(() => probe().then((lets) => {
      if (lets) connect(last, of);
      else connected("Logged out");
    }), 2000);
  });
}

// Whether this browser is still logged in, as far as is known.
async function probe() {
  try {
    const answer = await fetch(location.href, { method: "HEAD" });
    return answer.status !== 401;
  } catch {
    return true;
  }
}

function connected(trouble) {
  const link = document.getElementById("link");
  if (link.textContent !== trouble) link.textContent = trouble;
  document.body.toggleAttribute("data-lost", trouble !== "");
}

function index() {
  places = new Map();
  for (const element of document.querySelectorAll("[data-m]")) {
    const key = element.dataset.m;
    if (places.has(key)) places.get(key).push(element);
    else places.set(key, [element]);
  }
}

function apply(patch) {
  if (running) meanwhile.push(patch);
  write(patch);
  const when = document.body.dataset.again;
  const changed = patch.e.length > 0 || Object.keys(patch.m).length > 0;
  if (when !== undefined && (patch.others || (when === "changes" && changed))) again();
}

function write(patch) {
  for (const [key, row] of Object.entries(patch.m)) {
    for (const element of places.get(key) ?? []) put(element, row);
  }
  for (const event of patch.e) add(event);
  for (const [id, values] of Object.entries(patch.s ?? {})) set(document.getElementById(id), values);
  for (const [id, texts] of Object.entries(patch.l ?? {})) list(document.getElementById(id), texts);
}

// A row's fields, into the places that are named after them.
function put(element, row) {
  for (const part of element.querySelectorAll("[data-f]")) {
    const value = row[part.dataset.f];
    if (value === undefined) continue;
    if (part.localName === "use") part.setAttribute("href", `#${value}`);
    else if (part.textContent !== value) part.textContent = value;
  }
}

function set(element, values) {
  if (element === null) return;
  for (const [name, value] of Object.entries(values)) {
    if (name === "text") element.textContent = value;
    else if (value === null) element.removeAttribute(name);
    else element.setAttribute(name, value);
  }
}

function list(element, texts) {
  if (element === null) return;
  element.replaceChildren(...texts.map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
  element.toggleAttribute("data-none", texts.length === 0);
}

// An event on top of the page's table, unless it is there already.
function add(event) {
  const table = document.querySelector("tbody[data-events]");
  if (table === null) return;
  const newest = Number(table.rows[0]?.dataset.event ?? 0);
  if (event.id <= newest) return;
  const row = table.insertRow(0);
  row.dataset.event = event.id;
  const time = document.createElement("time");
  time.dateTime = event.x;
  time.textContent = event.t;
  row.insertCell().append(time);
  if (table.dataset.machine !== undefined) {
    const link = document.createElement("a");
    link.href = event.h;
    link.textContent = event.n;
    row.insertCell().append(link);
  }
  const state = document.createElement("span");
  state.className = "state";
  const words = document.createElement("span");
  words.textContent = event.s;
  state.append(mark(event.k), words);
  row.insertCell().append(state);
  row.insertCell().textContent = event.b;
  const detail = row.insertCell();
  detail.className = "wide";
  detail.textContent = event.d;
  while (table.rows.length > Number(table.dataset.events)) table.deleteRow(-1);
}

function mark(id) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.classList.add("mark");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("viewBox", "0 0 16 16");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#${id}`);
  svg.append(use);
  return svg;
}

function fetchAgain() {
  wanted = false;
  meanwhile = [];
  const request = new XMLHttpRequest();
  request.open("GET", location.href);
  request.responseType = "document";
  request.timeout = 20000;
  request.setRequestHeader("Accept", "text/html");
  request.addEventListener("load", () => {
    if (request.status === 200 && request.response !== null) replace(request.response);
  });
  request.addEventListener("loadend", () => {
    setTimeout(() => {
      running = false;
      if (wanted) again();
    }, AGAIN_AT_MOST_EVERY);
  });
  request.send();
}

function replace(fresh) {
  for (const old of document.querySelectorAll("[data-live]")) {
    const other = fresh.getElementById(old.id);
    if (other === null || other.isEqualNode(old)) continue;
    const focused = old.contains(document.activeElement) ? pathTo(old, document.activeElement) : null;
    const left = [...old.querySelectorAll(".scroll")].map((scroll) => scroll.scrollLeft);
    old.replaceChildren(...other.childNodes);
    [...old.querySelectorAll(".scroll")].forEach((scroll, n) => { scroll.scrollLeft = left[n] ?? 0; });
    if (focused !== null) at(old, focused)?.focus({ preventScroll: true });
  }
  events(fresh);
  index();
  meanwhile.forEach(write);
}

// The table of events is the server's where some were missed.
function events(fresh) {
  const [old, other] = [document, fresh].map((of) => of.querySelector("tbody[data-events]"));
  if (old === null || other === null) return;
  const newest = (table) => Number(table.rows[0]?.dataset.event ?? 0);
  const ids = (table) => [...table.rows].map((row) => row.dataset.event).join();
  const isRun = document.body.dataset.after.split("-")[0] === fresh.body.dataset.after.split("-")[0];
  // Of another run of the daemon, a smaller number can be newer: what was not on its disk is forgotten.
  if (ids(old) !== ids(other) && (!isRun || newest(other) >= newest(old))) old.replaceChildren(...other.childNodes);
  document.body.dataset.after = fresh.body.dataset.after;
}

function pathTo(root, element) {
  const path = [];
  for (let at = element; at !== root; at = at.parentElement) path.unshift([...at.parentElement.children].indexOf(at));
  return path;
}

function at(root, path) {
  return path.reduce((element, n) => element?.children[n], root);
}
