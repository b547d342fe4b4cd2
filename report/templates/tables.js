"use strict";
// Small helpers of all scripts of the page, then sorting and filtering of its tables.
function make(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
function score(value) {
  return value.toFixed(3).replace(/^(-?)0\./, "$1.");
}

function keyOf(row, place) {
  const text = row.cells[place].textContent.replace(/±.*/, "").replace(/,/g, "").trim();
  const number = parseFloat(text);
  return /^[-+.\d]/.test(text) && !Number.isNaN(number) ? number : text;
}
function compare(one, two) {
  if (typeof one === typeof two) {
    return typeof one === "number" ? one - two : one.localeCompare(two, "en", { numeric: true });
  }
  return typeof one === "number" ? 1 : -1;
}
function sortBy(table, head, place) {
  const order = { none: place ? "descending" : "ascending", descending: "ascending" };
  const now = head.getAttribute("aria-sort") || "none";
  let next = order[now] || "none";
  if (!place) next = { none: "ascending", ascending: "descending" }[now] || "none";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  const rows = [...table.tBodies[0].rows];
  const sign = next === "descending" ? -1 : 1;
  if (next !== "none") head.setAttribute("aria-sort", next);
  rows.sort((one, two) => {
    if (next === "none") return one.dataset.place - two.dataset.place;
    const [first, second] = [keyOf(one, place), keyOf(two, place)];
    // What is missing is last, whichever way.
    if ((first === "–") !== (second === "–")) return first === "–" ? 1 : -1;
    return sign * compare(first, second) || one.dataset.place - two.dataset.place;
  });
  table.tBodies[0].append(...rows);
}
function sortable(table) {
  [...table.tBodies[0].rows].forEach((row, place) => { row.dataset.place = place; });
  [...table.tHead.rows[0].cells].forEach((head, place) => {
    const button = make("button", { type: "button", onclick: () => sortBy(table, head, place) });
    button.append(...head.childNodes);
    head.append(button);
  });
}
function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 9) return;
  const count = make("span", { role: "status" });
  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = words.length ? `${shown} of ${rows.length} rows` : "";
  };
  const input = make("input", { type: "search", oninput: show });
  const label = make("label", {}, "Show rows with ", input);
  table.closest(".scroll").before(make("div", { class: "tools" }, ...[label, widen(table), count].filter(Boolean)));
}
// A narrow window hides a table's columns of text behind the first, until a reader asks for them.
function widen(table) {
  if (!table.classList.contains("scores")) return null;
  const box = make("input", { type: "checkbox", onchange: () => table.classList.toggle("wide") });
  return make("label", { class: "narrow" }, box, " columns of text too");
}
for (const table of document.querySelectorAll("figure table")) {
  sortable(table);
  filterable(table);
}
