// The page: funnel, charts, gallery, one clip, tables, failures, keys.
const find = (id) => document.getElementById(id);
const PAGE = 24;
const state = { page: 0, order: [], chosen: -1, reason: "", profile: "", failures: 50 };
let charts = [];

function option(select, value, text) {
  select.append(element("option", { value }, text === undefined ? value : text));
}

function buildCharts() {
  find("charts").replaceChildren();
  charts = profiles[state.profile].map((rule) => makeChart(rule, recount));
  charts.forEach((chart) => find("charts").append(chart.node));
  const used = new Set(profiles[state.profile].map((rule) => rule.column)), add = find("add-rule");
  add.replaceChildren();
  option(add, "", "a score ...");
  for (const name of Object.keys(columns)) if (!used.has(name) && !isText(name)) option(add, name);
}

let isWaiting = false;
function recount() {
  // Once a picture, however many events a drag sends.
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => {
    isWaiting = false;
    judgeAll();
    charts.forEach((chart) => chart.draw());
    showFunnel();
    showTables();
    refilter();
  });
}

function showFunnel() {
  const fell = {};
  for (const rule of verdicts.rule) if (rule) fell[rule.column] = (fell[rule.column] || 0) + 1;
  const rows = find("funnel-rows");
  rows.replaceChildren();
  let left = count;
  for (const name of ruleColumns()) {
    const lost = fell[name] || 0, before = left;
    left -= lost;
    const rule = profiles[""].find((one) => one.column === name);
    const label = `${rule && rule.reason ? rule.reason + ": " : ""}${name}`;
    const track = element("span", { class: "track" }, element("b"), element("i"));
    track.children[0].style.width = `${(100 * before) / Math.max(1, count)}%`;
    track.children[1].style.width = `${(100 * left) / Math.max(1, count)}%`;
    rows.append(element("button", { class: "step" + (state.reason === name ? " chosen" : ""), "data-column": name,
      onclick: () => { find("reason").value = state.reason = state.reason === name ? "" : name; state.page = 0; showFunnel(); refilter(); } },
      element("span", {}, label), track, element("span", {}, `${lost} fall, ${left} left`)));
  }
  find("count").textContent = `${verdicts.numKept} of ${count} kept`;
  find("count").dataset.kept = verdicts.numKept;
}

function refilter() {
  const show = find("show").value, source = find("source").value, licence = find("licence").value;
  const words = find("find").value.trim().toLowerCase(), reason = state.reason, sort = find("sort").value;
  state.order = [];
  for (let i = 0; i < count; i++) {
    const rule = verdicts.rule[i];
    if ((show === "kept" && rule) || (show === "refused" && !rule)) continue;
    if (reason && (!rule || rule.column !== reason)) continue;
    if (source && (valueOf("source", i) || "unknown") !== source) continue;
    if (licence && (valueOf("licence", i) || "unknown") !== licence) continue;
    if (words && !["clip_id", "path", "caption"].some((name) => (valueOf(name, i) || "").toLowerCase().includes(words))) continue;
    state.order.push(i);
  }
  if (sort) {
    const values = columns[sort.slice(1)].values, sign = sort[0] === "-" ? -1 : 1;
    const key = (i) => (values[i] === null ? Infinity : sign * values[i]);
    state.order.sort((a, b) => (key(a) === key(b) ? a - b : key(a) - key(b)));
  }
  showPage();
}

function showPage() {
  const pages = Math.max(1, Math.ceil(state.order.length / PAGE));
  state.page = Math.min(pages - 1, Math.max(0, state.page));
  find("page").textContent = `page ${state.page + 1} of ${pages}, ${state.order.length} clips`;
  find("page").dataset.clips = state.order.length;
  const shown = state.order.slice(state.page * PAGE, (state.page + 1) * PAGE);
  find("cards").replaceChildren(...shown.map(makeCard));
}

const reasonOf = (i) => (verdicts.rule[i] ? reasonText(verdicts.rule[i], verdicts.how[i]) : "kept");
const strip = (i) => (data.previews[i] ? element("img", { class: "strip", alt: "pictures of the clip", src: "data:image/jpeg;base64," + data.previews[i] })
  : element("div", { class: "strip none" }, "no preview"));

function makeCard(i) {
  const path = valueOf("path", i) || "", name = path.split("/").pop();
  return element("div", { class: "card" + (verdicts.rule[i] ? "" : " kept"), role: "listitem", tabindex: "0", "data-clip": i,
    onclick: () => openClip(i), onfocus: () => { state.chosen = i; },
    onkeydown: (event) => { if (event.key === "Enter") openClip(i); } },
    strip(i), element("div", { class: "name", title: path }, `${name} ${number(valueOf("start_s", i))} s`),
    element("div", { class: "why" }, reasonOf(i)),
    element("div", { class: "why" }, [valueOf("path_shape", i), valueOf("source", i), valueOf("licence", i) || "licence unknown"].filter(Boolean).join(" | ")));
}

function table(head, rows, isBad = () => false) {
  return element("table", {}, element("thead", {}, element("tr", {}, ...head.map((text) => element("th", {}, text)))),
    element("tbody", {}, ...rows.map((row) => element("tr", { class: isBad(row) ? "bad" : null },
      ...row.map((cell) => cell instanceof Node ? element("td", {}, cell) : element("td", { class: typeof cell === "number" ? "number" : null }, typeof cell === "number" ? number(cell) : cell ?? "unknown"))))));
}

function openClip(i) {
  state.chosen = i;
  const path = pathOf(i), content = find("clip-content"), asked = new Set();
  const rules = profiles[profileOf[i]].map((rule) => {
    asked.add(rule.column);
    const how = rule.on ? broken(rule, i) : null;
    return [rule.column, valueOf(rule.column, i), rangeText(rule), how ? reasonText(rule, how) : rule.on ? "ok" : "not asked"];
  });
  const others = Object.keys(columns).filter((name) => !asked.has(name)).map((name) => [name, valueOf(name, i), columns[name].unit, columns[name].about]);
  const unit = valueOf("scale_status", i) === "metric" ? "m" : "unit";
  const views = element("div", { class: "two" });
  content.replaceChildren(
    element("div", { class: "bar" }, element("h2", {}, valueOf("clip_id", i)), element("button", { onclick: () => find("clip").close() }, "Close (Esc)")),
    element("p", { id: "clip-reason" }, reasonOf(i)), strip(i), views,
    ...(valueOf("replay", i) ? [element("p", {}, `${valueOf("status", i)}: ${valueOf("reason", i)}`), element("p", {}, "again: ", element("code", {}, valueOf("replay", i)))] : []),
    ...(data.groups[valueOf("clip_id", i)] ? [element("p", {}, "near-duplicates: group of " + data.groups[valueOf("clip_id", i)])] : []),
    element("h2", {}, "Rules"), table(["score", "value", "asked", "verdict"], rules, (row) => row[3] !== "ok" && row[3] !== "not asked"),
    element("h2", {}, "Other scores"), table(["score", "value", "unit", "about"], others));
  if (!find("clip").open) find("clip").showModal();
  find("clip").dataset.clip = i;
  find("clip").scrollTop = 0;
  if (!path) { views.append(element("p", {}, "no path")); return; }
  const solid = element("canvas", { id: "path", tabindex: "0", "aria-label": "path in 3-D; drag or arrow keys to turn" });
  const curves = element("canvas", { "aria-label": "speed and sigma along the path" });
  views.append(solid, curves);
  const view = { yaw: 0.5, pitch: 0.6 }, draw = () => drawPath(solid, path, view);
  solid.addEventListener("pointerdown", (event) => solid.setPointerCapture(event.pointerId));
  solid.addEventListener("pointermove", (event) => {
    if (!solid.hasPointerCapture(event.pointerId)) return;
    view.yaw += event.movementX / 100;
    view.pitch += event.movementY / 100;
    draw();
  });
  solid.addEventListener("keydown", (event) => {
    const turn = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (!turn) return;
    event.preventDefault();
    view.yaw += turn[0];
    view.pitch += turn[1];
    draw();
  });
  draw();
  drawCurves(curves, path, unit);
}

function showTables() {
  for (const name of ["source", "licence"]) {
    const rows = {};
    for (let i = 0; i < count; i++) {
      const key = valueOf(name, i) || "unknown", row = (rows[key] ||= [key, 0, 0, 0, 0]);
      const hours = (valueOf("duration_s", i) || 0) / 3600;
      row[1]++;
      row[3] += hours;
      if (!verdicts.rule[i]) { row[2]++; row[4] += hours; }
    }
    const sorted = Object.values(rows).sort((a, b) => b[1] - a[1]).slice(0, 200);
    find(name + "-table").replaceChildren(table([name, "clips", "kept", "hours", "hours kept"], sorted));
  }
}

let failures = [];
function showFailures() {
  const rows = failures.slice(0, state.failures).map((row) => [row.status, row.path, row.reason, element("code", {}, row.replay || "")]);
  find("failure-rows").replaceChildren(failures.length ? table([`status (${failures.length})`, "file", "reason", "again"], rows) : element("p", {}, "none"));
  find("more-failures").hidden = failures.length <= state.failures;
}

function moveFocus(step) {
  const place = state.order.indexOf(state.chosen), next = Math.min(state.order.length - 1, Math.max(0, place + step));
  if (next < 0) return;
  if (Math.floor(next / PAGE) !== state.page) { state.page = Math.floor(next / PAGE); showPage(); }
  state.chosen = state.order[next];
  if (find("clip").open) openClip(state.chosen);
  else document.querySelector(`.card[data-clip="${state.chosen}"]`).focus();
}

const turnPage = (step) => { state.page += step; showPage(); };
const showOnly = (value) => { find("show").value = value; state.page = 0; refilter(); };
const KEYS = { j: () => moveFocus(1), k: () => moveFocus(-1), n: () => turnPage(1), p: () => turnPage(-1), "/": () => find("find").focus(),
  a: () => showOnly("all"), y: () => showOnly("kept"), x: () => showOnly("refused"), "?": () => find("help").showModal() };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || ["INPUT", "SELECT"].includes(event.target.tagName) || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});

function start() {
  const part = data.num_shown < data.num_clips ? ` (${data.num_shown} shown, evenly spread)` : "";
  find("facts").textContent = `${data.dataset}: ${data.num_clips} clips${part}, rules ${data.rules.name}, worldline ${data.version}`;
  for (const source of Object.keys(profiles)) option(find("profile"), source, source || "all other sources");
  option(find("reason"), "", "any");
  for (const name of ruleColumns()) option(find("reason"), name);
  for (const name of ["source", "licence"]) {
    option(find(name), "", "any");
    for (const word of [...columns[name].words, "unknown"]) option(find(name), word);
  }
  option(find("sort"), "", "table order");
  for (const name of Object.keys(columns)) if (!isText(name)) { option(find("sort"), "+" + name, name + ", smallest first"); option(find("sort"), "-" + name, name + ", largest first"); }
  for (const id of ["show", "source", "licence", "sort"]) find(id).addEventListener("change", () => { state.page = 0; refilter(); });
  find("find").addEventListener("input", () => { state.page = 0; refilter(); });
  find("reason").addEventListener("change", () => { state.reason = find("reason").value; state.page = 0; showFunnel(); refilter(); });
  find("profile").addEventListener("change", () => { state.profile = find("profile").value; buildCharts(); recount(); });
  find("add-rule").addEventListener("change", () => {
    const column = find("add-rule").value;
    // For every source: a score that is added by hand is asked of all.
    const rule = { column, min: null, max: null, among: [], pattern: "", reason: "", on: true };
    for (const rules of Object.values(profiles)) if (!rules.some((one) => one.column === column)) rules.push(rule);
    option(find("reason"), column);
    buildCharts();
    recount();
  });
  find("reset").addEventListener("click", () => { loadRules(); buildCharts(); recount(); });
  find("save").addEventListener("click", () => {
    const text = rulesToml(), link = element("a", { href: URL.createObjectURL(new Blob([text])), download: "rules.toml" }, "rules.toml");
    find("clip-content").replaceChildren(element("h2", {}, "Rules"), element("p", {}, link, ": worldline decide DATASET --rules rules.toml"), element("pre", { id: "toml" }, text));
    find("clip").showModal();
  });
  find("previous").addEventListener("click", () => turnPage(-1));
  find("next").addEventListener("click", () => turnPage(1));
  find("help-button").addEventListener("click", () => find("help").showModal());
  find("more-failures").addEventListener("click", () => { state.failures += 200; showFailures(); });
  const clips = Array.from({ length: count }, (_, i) => i).filter((i) => valueOf("status", i) !== "ok")
    .map((i) => ({ status: valueOf("status", i), path: valueOf("path", i), reason: valueOf("reason", i), replay: valueOf("replay", i) }));
  failures = [...data.videos, ...clips].sort((a, b) => (a.status === b.status ? 0 : a.status === "failed" ? -1 : 1));
  showFailures();
  buildCharts();
  recount();
  document.body.dataset.ready = "yes";
}
start();
