// The reader of answers. Scripts beside the page hold packed files, one loads when it is asked for.
const loaded = {};
const waiting = {};
async function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const lines = (await new Response(stream).text()).split("\n").filter(Boolean);
  return lines.map((line) => JSON.parse(line));
}
function itemsLoaded(name, text) {
  waiting[name].resolve(unpacked(text));
}
function load(name) {
  loaded[name] ||= new Promise((resolve, reject) => {
    waiting[name] = { resolve };
    const gone = () => { delete loaded[name]; reject(new Error(`${DATA.items}/${name}.js is not there`)); };
    document.head.append(make("script", { src: `${DATA.items}/${name}.js`, onerror: gone }));
  });
  return loaded[name];
}
const answersOf = (path) => load(path.replace(/\.json$/, ""));
function questionsOf(path, task) {
  return load(`${DATA.runs[path].world}/data/test/${task.replaceAll(":", "-")}`).catch(() => []);
}

const RIGHT = 0.5;  // a score above which an answer counts as right; ROUGE and F1 have all between
const FILTERS = {
  "first right, second wrong": (a, b) => a > RIGHT && b <= RIGHT,
  "first wrong, second right": (a, b) => a <= RIGHT && b > RIGHT,
  "both wrong": (a, b) => a <= RIGHT && b <= RIGHT,
  "both right": (a, b) => a > RIGHT && b > RIGHT,
  "different answers": (a, b, one, two) => JSON.stringify(one.answer) !== JSON.stringify(two.answer),
  "all items": () => true,
};
const STEP = 40;
const state = { shown: STEP, ticket: 0 };
const box = {};

function labelOf(path) {
  const seed = path.match(/^ablation\/.*\/(seed\d+)\//);
  return rowOf(path) + (seed ? `, Table 3, ${seed[1]}` : "");
}
function rowOf(path) {
  for (const table of Object.values(DATA.tables)) {
    for (const [label, runs] of Object.values(table.lines)) {
      if (runs.some(([, other]) => other === path)) return label;
    }
  }
  return path;
}
// Runs of one world or of the ablation's seeds answer the same items.
function runsBeside(world) {
  return Object.keys(DATA.runs).filter((path) =>
    DATA.runs[path].world === world && Object.keys(DATA.runs[path].tasks).length);
}
function fill(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) =>
    make("option", { value, selected: value === chosen }, text)));
}
function bestExpert(world, task) {
  const value = (path) => (DATA.runs[path].tasks[task] || [-1])[0];
  const experts = runsBeside(world).filter((path) =>
    DATA.runs[path].model.includes("/models/") && !path.endsWith("/base.json"));
  return experts.sort((one, two) => value(two) - value(one))[0];
}
function setWorld(world, task, first, second) {
  const runs = runsBeside(world);
  const tasks = [...new Set(runs.flatMap((path) => Object.keys(DATA.runs[path].tasks)))];
  const names = runs.map((path) => [path, labelOf(path)]);
  const chosen = tasks.includes(task) ? task : tasks[0];
  fill(box.world, [...new Set(Object.values(DATA.runs).map((run) => run.world))].map((w) => [w, w]), world);
  fill(box.task, tasks.map((name) => [name, name]), chosen);
  const merges = runs.filter((path) => DATA.runs[path].model.includes("/merges/"));
  fill(box.first, names, first || bestExpert(world, chosen));
  fill(box.second, names, second || merges[0]);
  return refresh();
}
function browse(path, task) {
  document.getElementById("items").open = true;
  box.filter.value = "first right, second wrong";
  box.words.value = "";
  setWorld(DATA.runs[path].world, task, null, path);
  document.getElementById("items").scrollIntoView();
  box.task.focus({ preventScroll: true });
}

function written(value, choices) {
  if (value === null || value === undefined) return "no answer";
  return choices && typeof value === "number" ? choices[value] : String(value);
}
function verdict(record) {
  const right = record.score > RIGHT;
  const between = record.score > 0 && record.score < 1 ? ` (score ${score(record.score)})` : "";
  return [make("b", { class: right ? "right" : "wrong" }, right ? "right" : "wrong"), between];
}
function answerBlock(label, record) {
  return make("div", {}, make("div", { class: "e" }, label, ": ", ...verdict(record)),
    make("pre", {}, written(record.answer)),
    record.outcome ? make("div", { class: "e" }, `Outcome: ${record.outcome}`) : null);
}
// A row for each choice, with both models' log-likelihoods of it.
function choiceTable(labels, records, choices) {
  const heads = records.map((record, place) => make("th", { scope: "col", title: "Log-likelihoods" },
    labels[place], ": ", ...verdict(record)));
  const value = (record, place) => {
    const found = record.loglikelihoods[place];
    const text = found === null || found === undefined ? "none" : found.toFixed(2);
    return make("td", {}, ...(record.answer === place ? [make("b", {}, text), " answer"] : [text]));
  };
  const rows = records[0].loglikelihoods.map((_, place) => make("tr", {},
    make("th", { scope: "row", class: "t" }, ...(records[0].gold === place
      ? [make("b", {}, written(place, choices)), " gold"] : [written(place, choices)])),
    ...records.map((record) => value(record, place))));
  return make("div", { class: "scroll", tabindex: 0 }, make("table", {},
    make("thead", {}, make("tr", {}, make("th", { scope: "col", class: "t" }, "Choice"), ...heads)),
    make("tbody", {}, ...rows)));
}
// What every model read: a prompt as it was asked, or the fields of a row that holds none.
function promptOf(row) {
  if (!row) return [make("p", {}, "The prompt is not in the data folder.")];
  if (row.prompt === undefined) {
    const fields = Object.entries(row).filter(([name]) => name !== "id")
      .map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
    return [make("p", { class: "e" }, "The fields of its row; no prompts were written:"),
      make("pre", {}, fields.join("\n"))];
  }
  const limit = row.max_tokens ? `at most ${row.max_tokens} tokens` : null;
  const stops = row.until && row.until.length
    ? `up to ${row.until.map((text) => JSON.stringify(text)).join(" or ")}` : null;
  const answer = [stops, limit].filter(Boolean).join(", ");
  return [
    row.before ? make("details", {}, make("summary", {}, `In front of it: ${row.before.length} characters `
      + "of instructions and solved examples"), make("pre", {}, row.before)) : null,
    row.prompt ? make("pre", {}, row.prompt)
      : make("p", { class: "e" }, "Nothing is asked: the choices are compared as entire texts."),
    answer ? make("div", { class: "e" }, `An answer is read ${answer}.`) : null];
}
function itemBlock(question, one, two) {
  const choices = question && Array.isArray(question.choices) ? question.choices : null;
  const labels = [labelOf(box.first.value), labelOf(box.second.value)];
  const answers = one.loglikelihoods ? [choiceTable(labels, [one, two], choices)]
    : [make("div", {}, "Gold: ", make("b", {}, written(one.gold))),
      make("div", { class: "pair" }, answerBlock(labels[0], one), answerBlock(labels[1], two))];
  return make("article", { class: "item", id: `item-${one.id}` },
    make("div", { class: "e" }, String(one.id)), ...promptOf(question), ...answers);
}
const ofTask = (records, task) => records.filter((record) => record.task === task);

async function refresh() {
  const ticket = ++state.ticket;
  const [first, second, task] = [box.first.value, box.second.value, box.task.value];
  box.count.textContent = "Loading …";
  try {
    const [ones, twos, questions] = await Promise.all(
      [answersOf(first), answersOf(second), questionsOf(first, task)]);
    if (ticket !== state.ticket) return;  // another choice was made meanwhile
    const asked = new Map(questions.map((row, place) => [String(row.id ?? place), row]));
    const other = new Map(ofTask(twos, task).map((record) => [record.id, record]));
    const words = box.words.value.toLowerCase();
    const pairs = ofTask(ones, task).filter((one) => other.has(one.id)).map((one) =>
      [asked.get(String(one.id)), one, other.get(one.id)]);
    const kept = pairs.filter(([row, one, two]) =>
      FILTERS[box.filter.value](one.score, two.score, one, two)
      && (!words || JSON.stringify([row, one, two]).toLowerCase().includes(words)));
    box.count.textContent = `${kept.length} of ${pairs.length} items`;
    box.list.replaceChildren(...kept.slice(0, state.shown).map((pair) => itemBlock(...pair)));
    box.more.hidden = kept.length <= state.shown;
  } catch (error) {
    box.count.textContent = String(error.message || error);
    box.list.replaceChildren();
  }
}
// Which items each model got right: a strip for each, in the order of the items.
async function strips() {
  const [world, task] = [box.world.value, box.task.value];
  const rows = [], colours = getComputedStyle(document.documentElement);
  for (const path of runsBeside(world).filter((name) => task in DATA.runs[name].tasks)) {
    const records = ofTask(await answersOf(path).catch(() => []), task);
    const canvas = make("canvas", { width: records.length || 1, height: 1, role: "img",
      "aria-label": `${records.filter((record) => record.score > RIGHT).length} of ${records.length} right` });
    const paint = canvas.getContext("2d");
    records.forEach((record, place) => {
      paint.fillStyle = colours.getPropertyValue(record.score > RIGHT ? "--right" : "--wrong");
      paint.fillRect(place, 0, 1, 1);
    });
    const right = records.filter((record) => record.score > RIGHT).length;
    rows.push(make("tr", {}, make("th", { scope: "row", class: "t" }, labelOf(path)),
      make("td", {}, `${right} of ${records.length}`), make("td", {}, canvas)));
  }
  const caption = `${task} in ${world}: items that each model got right (green) and wrong (orange), in their order`;
  box.strips.replaceChildren(make("div", { class: "scroll", tabindex: 0 },
    make("table", {}, make("caption", { class: "t" }, caption), make("tbody", {}, ...rows))));
}
function startItems() {
  const place = document.getElementById("items");
  if (!place) return;
  const again = () => { state.shown = STEP; return refresh(); };
  for (const name of ["world", "task", "first", "second"]) box[name] = make("select", { onchange: again });
  box.world.addEventListener("change", () => setWorld(box.world.value, box.task.value));
  box.filter = make("select", { onchange: again });
  fill(box.filter, Object.keys(FILTERS).map((name) => [name, name]), "first right, second wrong");
  box.words = make("input", { type: "search", oninput: again });
  box.count = make("span", { role: "status" });
  box.list = make("div", {});
  box.strips = make("div", {});
  box.more = make("button", { type: "button", hidden: "", onclick: () => { state.shown += STEP; refresh(); } }, "More items");
  const tools = make("div", { class: "tools" });
  const labels = { world: "World ", task: "Task ", first: "First ", second: "Second ", filter: "Show ", words: "with " };
  for (const [name, text] of Object.entries(labels)) tools.append(make("label", {}, text, box[name]));
  tools.append(make("button", { type: "button", onclick: strips }, "All models"), box.count);
  place.append(tools, box.strips, box.list, box.more);
  let started = false;
  place.addEventListener("toggle", () => {
    if (place.open && !started && !box.first.value) setWorld(Object.values(DATA.runs)[0].world);
    started = true;
  });
}
if (DATA.items) startItems();
