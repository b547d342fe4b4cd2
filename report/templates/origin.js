// A click on a number shows where it comes from: what `python -m report explain` prints, compact.
const DATA = JSON.parse(document.getElementById("cells").textContent);
const panel = document.getElementById("origin");

function fileLink(path) {
  return make("a", { href: `${DATA.results}/${path}` }, path);
}
function tasksOf(table, column) {
  return [...new Set(DATA.tables[table].columns[column].flat())];
}
function runBlock(table, column, seed, path) {
  const run = DATA.runs[path];
  const tasks = tasksOf(table, column).filter((task) => task in run.tasks);
  const rows = tasks.map((task) => {
    const [value, error, items] = run.tasks[task];
    const open = () => { panel.close(); browse(path, task); };
    const button = DATA.items && make("button", { type: "button", onclick: open }, "its answers");
    return make("tr", {}, make("th", { scope: "row", class: "t" }, task),
      make("td", {}, score(value)), make("td", {}, `±${score(error)}`), make("td", {}, `${items} items`),
      make("td", {}, button || ""));
  });
  const made = DATA.circumstances[run.made];
  const block = make("section", {},
    make("h3", {}, seed === null ? run.world : `Seed ${seed} (${run.world})`),
    run.status === "ok" ? null : make("p", {}, run.status),
    make("table", {}, make("tbody", {}, ...rows)),
    make("p", {}, "Scores: ", fileLink(path), run.sha256 ? ` sha256 ${run.sha256[0]}` : ""),
    make("p", {}, "Answers: ", fileLink(path.replace(/json$/, "items.jsonl.gz")),
      run.sha256 ? ` sha256 ${run.sha256[1]}` : ""));
  block.classList.add("hash");
  if (!made) {
    block.append(make("p", {}, "The score file has no manifest: no more is recorded."));
    return block;
  }
  block.append(make("p", {}, "This cell again:"),
    make("pre", {}, run.again.replace("TASKS", tasks.join(","))),
    make("details", {}, make("summary", {}, `Made in ${run.chain.length} steps, from the data to ${run.model}`),
      ...run.chain.map(stepBlock),
      make("p", {}, `Scored at commit ${run.commit} with ${named(made.versions)}; ${named(made.numerics)}.`)));
  return block;
}
function named(values) {
  return Object.entries(values).map(([name, value]) => `${name} ${value}`).join(", ");
}
function stepBlock(path) {
  const step = DATA.steps[path];
  const inputs = step.inputs.map(([name, hash, place]) =>
    make("li", {}, `${name}: `, place ? fileLink(place) : "not here now", ` (${hash}…)`));
  return make("details", {},
    make("summary", {}, `${step.kind}: ${path}${step.seed === null ? "" : `, seed ${step.seed}`}`),
    make("p", {}, `Manifest sha256 ${step.sha256}; code ${step.code}; commit ${step.commit}`),
    step.recipe.length ? make("pre", {}, step.recipe.join("\n")) : null,
    inputs.length ? make("ul", {}, ...inputs) : null,
    make("p", {}, "Command:"), make("pre", {}, step.command));
}
function showOrigin(table, line, column, shown) {
  const about = DATA.tables[table];
  const [label, runs] = about.lines[line];
  const only = about.seeds[column];
  const chosen = runs.filter(([seed]) => only === undefined || seed === only);
  const explain = `python -m report explain ${table} ${line} "${column}" --results ${DATA.folder}`;
  panel.replaceChildren(
    make("button", { type: "button", class: "close", onclick: () => panel.close() }, "Close"),
    make("h2", {}, `${label}, ${column}: ${shown}`),
    make("p", {}, `± is the ${about.errors}.`
      + (chosen.length > 1 ? ` The mean over ${chosen.length} seeds:` : "")),
    ...chosen.map(([seed, path]) => runBlock(table, column, seed, path)),
    make("p", {}, "In a terminal:"), make("pre", {}, explain));
  panel.showModal();
  panel.scrollTop = 0;
}

function cellsOf(table) {
  const heads = [...table.tHead.rows[0].cells];
  const found = [];
  for (const row of table.tBodies[0].rows) {
    if (!row.dataset.line) continue;
    found.push([...row.cells].filter((cell, place) =>
      heads[place].dataset.column && /\d/.test(cell.textContent)));
  }
  return found;
}
// One stop of the Tab key for each table; arrows move between its cells.
function reachable(table) {
  for (const cell of cellsOf(table).flat()) {
    cell.classList.add("cell");
    cell.tabIndex = -1;
    cell.title = "Where this number comes from";
  }
  const first = table.querySelector("td.cell");
  if (first) first.tabIndex = 0;
  const open = (cell) => {
    const column = table.tHead.rows[0].cells[cell.cellIndex].dataset.column;
    showOrigin(table.dataset.table, cell.parentElement.dataset.line, column, cell.textContent);
  };
  table.tBodies[0].addEventListener("click", (event) => {
    const cell = event.target.closest("td.cell");
    if (cell) open(cell);
  });
  table.tBodies[0].addEventListener("keydown", (event) => {
    const cell = event.target.closest("td.cell");
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (cell && (event.key === "Enter" || event.key === " ")) open(cell);
    else if (cell && step) {
      const rows = [...table.tBodies[0].rows].filter((row) => row.dataset.line && !row.hidden);
      const row = rows[rows.indexOf(cell.parentElement) + step[0]];
      const next = row && row.cells[cell.cellIndex + step[1]];
      if (next && next.classList.contains("cell")) {
        cell.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      }
    } else return;
    event.preventDefault();
  });
}
document.querySelectorAll("table[data-table]").forEach(reachable);
