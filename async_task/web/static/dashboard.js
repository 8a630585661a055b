// Makes the pages live, and gives them keys. Everything works without it.
"use strict";

const EVERY = 3000;
const main = document.getElementById("main");
const live = document.getElementById("live");
const words = document.getElementById("live-words");
const button = document.getElementById("live-button");
let isPaused = false;
let lastGood = Date.now();
let isAsking = false;
let hasFailed = false;
let isOld = false;
take(document);

// Live: the regions that are marked are replaced by those of the same page, read again.

function regions(page) {
  return Array.from(page.querySelectorAll("[data-live][id]"));
}

function isBusy() {
  const field = document.activeElement;
  const types = field !== null && main.contains(field) && field.matches("input:not([type=checkbox]), select, textarea");
  const ticked = main.querySelector("input[type=checkbox]:checked") !== null;
  const opened = main.querySelector(".verb[open]") !== null;
  const selects = String(document.getSelection() || "") !== "";
  return types || ticked || opened || selects || hasTyped();
}

function hasTyped() {
  const fields = Array.from(main.querySelectorAll("[data-live] :is(input:not([type=hidden]), textarea)"));
  return fields.some((one) => one.value !== one.defaultValue);
}

function replace(old, made) {
  for (const one of old.querySelectorAll("details[open][id]")) made.querySelector(`#${CSS.escape(one.id)}`)?.setAttribute("open", "");
  const here = old.querySelector("tr.here a.open")?.getAttribute("href");
  for (const link of here ? made.querySelectorAll("tr a.open") : []) {
    if (link.getAttribute("href") === here) link.closest("tr").classList.add("here");
  }
  if (old.innerHTML === made.innerHTML) return;
  const find = old.contains(document.activeElement) ? finder(old, document.activeElement) : null;
  old.replaceChildren(...made.childNodes);
  find?.()?.focus({ preventScroll: true });
}

// Finds again what had the focus: the same link, box or button.
function finder(region, focused) {
  const same = (one) => ["href", "name", "value"].every((name) => one.getAttribute(name) === focused.getAttribute(name));
  const all = () => Array.from(region.querySelectorAll(focused.localName));
  const alike = () => all().filter(same);
  const place = alike().indexOf(focused);
  return () => alike()[place];
}

// How old the figures of a page are: while the database does not answer, the server sends the last ones that it has.
function take(page) {
  const age = page.getElementById("banner").dataset.age;
  isOld = age !== undefined;
  lastGood = Date.now() - 1000 * Number(age ?? 0);
  hasFailed = false;
}

async function refresh() {
  if (isAsking || isPaused || document.hidden || isBusy()) return;
  isAsking = true;
  try {
    const address = new URL(location.href);
    address.searchParams.delete("done");
    const answer = await fetch(address, { headers: { Accept: "text/html" }, credentials: "same-origin", redirect: "error" });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (!answer.ok) throw new Error(String(answer.status));
    if (isPaused || isBusy()) return;
    for (const old of regions(document)) {
      const made = page.getElementById(old.id);
      if (made) replace(old, made);
    }
    take(page);
  } catch (error) {
    hasFailed = true; // the page keeps its last figures, and says how old they are
  } finally {
    isAsking = false;
  }
}

function say() {
  const seconds = Math.round((Date.now() - lastGood) / 1000);
  const state = isPaused ? "not updated" : document.hidden || isBusy() ? "not updated while you choose or type" : hasFailed ? "no answer" : isOld ? "older figures" : "live";
  words.textContent = `${state}, ${seconds} s ago`;
  live.classList.toggle("late", state === "no answer" || state === "older figures");
  button.textContent = isPaused ? "update" : "stop updating";
}

if (live && regions(document).length) {
  live.hidden = false;
  button.addEventListener("click", () => {
    isPaused = !isPaused;
    say();
  });
  setInterval(refresh, EVERY);
  setInterval(say, 1000);
  document.addEventListener("visibilitychange", refresh);
  say();
}

// Keys: / search, j k move, x tick, Enter open, r retry, ? help.

function rows() {
  return Array.from(main.querySelectorAll("tr[data-row]"));
}

function mark(row) {
  for (const one of main.querySelectorAll("tr.here")) one.classList.remove("here");
  row.classList.add("here");
}

function move(by) {
  const all = rows();
  if (!all.length) return;
  const at = all.findIndex((one) => one.classList.contains("here"));
  const next = all[Math.min(Math.max(at + by, 0), all.length - 1)];
  mark(next);
  next.scrollIntoView({ block: "nearest" });
  const link = next.querySelector("a.open");
  if (link) link.focus({ preventScroll: true });
}

function tick() {
  const box = main.querySelector("tr.here input[type=checkbox]");
  if (box) box.click();
}

function retry() {
  const summary = document.getElementById("retry");
  if (summary) {
    summary.parentElement.open = true;
    const field = summary.parentElement.querySelector("input[name=reason]");
    (field || summary).focus();
    return;
  }
  const bulk = main.querySelector("#bulk button[value=retry]");
  if (bulk) bulk.focus();
}

const KEYS = {
  "/": () => document.getElementById("search")?.focus(),
  j: () => move(1),
  k: () => move(-1),
  x: tick,
  r: retry,
  "?": () => document.getElementById("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  const types = event.target.matches("input:not([type=checkbox]), select, textarea");
  if (event.key === "Escape" && types) event.target.blur();
  if (types || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && event.target === document.body) {
    main.querySelector("tr.here a.open")?.click();
  } else if (event.key in KEYS) {
    event.preventDefault();
    KEYS[event.key]();
  }
});

// A form is sent once, however often its button is clicked; again after a return to its page.

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.method !== "post" || event.defaultPrevented) return;
  if ("sent" in form.dataset) event.preventDefault();
  form.dataset.sent = "";
});
window.addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
});

// A verb for many goes on by itself, as long as its page is open.

const rest = main.querySelector("form[data-continue]");
if (rest) setTimeout(() => rest.requestSubmit(), 300);
