"use strict";
// What is shown is text, never markup: names come from the user's data.
const { review, columns, classes, items } = JSON.parse(document.getElementById("data").textContent);
const UNKNOWN = -1; // answer of an image that nobody can tell; null is no answer, other numbers are class indices
const KEYS = "123456789abcdefghijklmnopqrstuvwxyz";
const $ = (id) => document.getElementById(id);

// Classes that are called by one letter or digit have it as their key: 3 is the class 3, not the third one.
const named = classes.every((name) => /^[0-9a-z]$/.test(name));
const many = !named && classes.length > KEYS.length; // too many for a key each: they are found by typing
const keyOf = (index) => (named ? classes[index] : many ? "" : KEYS[index]);

let answers = items.map(() => null);
let at = 0;
let history = []; // [place, answer before] of each answer, for undo

const store = "dpl_ray review " + review;
try {
  const kept = JSON.parse(localStorage.getItem(store));
  const isAnswer = (answer) => answer === null || (Number.isInteger(answer) && answer >= UNKNOWN && answer < classes.length);
  if (kept && kept.length === items.length && kept.every(isAnswer)) answers = kept;
} catch {}
const firstOpen = () => (answers.includes(null) ? answers.indexOf(null) : items.length);
at = firstOpen();

function keep() {
  try {
    localStorage.setItem(store, JSON.stringify(answers));
  } catch {
    $("trouble").textContent = "This browser keeps nothing when the tab is closed: save the answers before.";
  }
}

function nameOf(answer) {
  return answer === null ? "not answered" : answer === UNKNOWN ? "cannot tell" : classes[answer];
}

function percent(share) {
  if (share == null) return "";
  return share < 0.0005 ? "< 0.1 %" : share > 0.9995 ? "> 99.9 %" : (100 * share).toFixed(1) + " %";
}

function button(index, share, key, className) {
  const made = document.createElement("button");
  made.type = "button";
  made.className = className;
  made.setAttribute("aria-pressed", String(answers[at] === index));
  for (const [kind, text] of [["class", classes[index]], ["share", percent(share)]]) {
    if (!text) continue;
    const part = document.createElement("span");
    part.className = kind;
    part.textContent = text;
    made.append(part);
  }
  if (key) {
    const hint = document.createElement("kbd");
    hint.textContent = key;
    made.append(hint);
    made.setAttribute("aria-keyshortcuts", key);
  }
  made.addEventListener("click", () => answer(index));
  return made;
}

// The proposed class and its runners-up, each with its probability.
function candidates() {
  const item = items[at];
  return [...(item.label === null ? [] : [[item.label, item.confidence]]), ...item.others];
}

function matches() {
  const text = $("filter").value.trim().toLowerCase();
  const found = classes.map((name, index) => [name.toLowerCase(), index]).filter(([name]) => name.includes(text));
  return found.sort((a, b) => b[0].startsWith(text) - a[0].startsWith(text)).map(([, index]) => index);
}

function showClasses() {
  const shown = many ? matches().slice(0, 30) : classes.map((_, index) => index);
  $("classes").replaceChildren(...shown.map((index) => button(index, null, keyOf(index), "")));
}

function show() {
  const isDone = at === items.length;
  const number = answers.filter((answer) => answer !== null).length;
  $("progress").max = items.length;
  $("progress").value = number;
  $("count").textContent = `${number} of ${items.length} answered`;
  $("stage").hidden = $("choices").hidden = isDone;
  $("done").hidden = !isDone;
  if (isDone) {
    $("done-title").focus();
    return `All ${items.length} images are answered. Save the answers.`;
  }
  const item = items[at];
  const said = candidates();
  $("picture").hidden = item.picture === null;
  $("unreadable").hidden = item.picture !== null;
  if (item.picture) $("picture").src = item.picture;
  $("picture").alt = `Image ${at + 1} of ${items.length}`;
  $("unreadable").textContent = `This image cannot be shown: ${item.reason}`;
  $("name").textContent = item.id;
  $("note").textContent = item.note;
  $("candidates").replaceChildren(
    ...said.map(([index, share], place) => {
      const isFirst = place === 0 && item.label !== null;
      return button(index, share, isFirst ? "Enter" : many ? String(place + 1) : keyOf(index), isFirst ? "first" : "");
    }),
  );
  $("filter").value = "";
  showClasses();
  $("unknown").setAttribute("aria-pressed", String(answers[at] === UNKNOWN));
  $("back").disabled = at === 0;
  $("undo").disabled = history.length === 0;
  const before = answers[at] === null ? "" : ` Answered: ${nameOf(answers[at])}.`;
  $("state").textContent = `Image ${at + 1} of ${items.length}.${before}`;
  $("stage").focus({ preventScroll: true });
  const proposed = said.map(([index, share]) => `${classes[index]} ${percent(share)}`).join(", ");
  return `Image ${at + 1} of ${items.length}.${before}${proposed ? ` Proposed: ${proposed}.` : ""} ${item.note}`;
}

function go(place, prefix = "") {
  at = place;
  $("live").textContent = prefix + show();
}

function answer(value) {
  if (at === items.length) return;
  history.push([at, answers[at]]);
  answers[at] = value;
  keep();
  go(at + 1, `${nameOf(value)}. `);
}

function undo() {
  if (!history.length) return;
  const [place, before] = history.pop();
  answers[place] = before;
  keep();
  go(place, "Undone. ");
}

function back() {
  if (at > 0) go(at - 1);
}

function forward() {
  if (at < firstOpen()) go(at + 1);
}

function toCsv() {
  const quoted = (value) => (/[",\r\n]|^\s|\s$/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const rows = items.flatMap((item, place) => {
    if (answers[place] === null) return [];
    const name = (index) => (index === null || index === UNKNOWN ? "" : classes[index]);
    return [[item.id, name(answers[place]), name(item.label), item.probability ?? "", review]];
  });
  return [columns, ...rows].map((row) => row.map((value) => quoted(String(value))).join(",") + "\r\n").join("");
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([toCsv()], { type: "text/csv" }));
  link.download = "answers.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  $("live").textContent = "Saved answers.csv.";
}

// A key does what the element with the focus does by itself, if the reader has moved there.
function onKey(event) {
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
    event.preventDefault();
    undo();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  const isOpen = at < items.length;
  const focus = document.activeElement;
  if (focus === $("filter")) {
    if (event.key === "Escape") {
      $("filter").value = "";
      showClasses();
      $("stage").focus();
    } else if (event.key === "Enter" && matches().length) {
      event.preventDefault();
      answer(matches()[0]);
    }
    return;
  }
  if (["Enter", " "].includes(event.key) && focus.closest("button, a, pre")) return;
  const key = event.key.toLowerCase();
  let act = null;
  if (event.key === "Backspace" || event.key === "ArrowLeft") act = back;
  else if (event.key === "ArrowRight") act = forward;
  else if (!isOpen || event.repeat) return;
  else if (event.key === "Enter" && items[at].label !== null) act = () => answer(items[at].label);
  else if (event.key === " ") act = () => answer(UNKNOWN);
  else if (many && /^[1-3]$/.test(key) && candidates()[key - 1]) act = () => answer(candidates()[key - 1][0]);
  else if (many && /^\p{L}$/u.test(key)) {
    $("filter").focus(); // which gets this letter
    return;
  } else if (key.length === 1 && !many) {
    const index = classes.findIndex((_, place) => keyOf(place) === key);
    if (index >= 0) act = () => answer(index);
  }
  if (act) {
    event.preventDefault();
    act();
  }
}

document.addEventListener("keydown", onKey);
$("filter").addEventListener("input", showClasses);
$("find").hidden = !many;
for (const [id, act] of [["unknown", () => answer(UNKNOWN)], ["back", back], ["undo", undo], ["save", save], ["save-all", save], ["again", () => go(0)]]) {
  $(id).addEventListener("click", act);
}
go(at);
