// Histograms with draggable ends, and the picture of a path.
const BINS = 48;
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value === true) made.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

// What the axis of a score covers: all but the outermost hundredth of values, and the ends of its ranges.
const spans = {};
function spanOf(name) {
  if (spans[name]) return spans[name];
  const values = columns[name].values.filter((value) => value !== null).sort((a, b) => a - b);
  let low = values.length ? values[Math.floor(0.01 * (values.length - 1))] : 0;
  let high = values.length ? values[Math.ceil(0.99 * (values.length - 1))] : 1;
  for (const rules of Object.values(profiles))
    for (const rule of rules)
      if (rule.column === name) {
        if (rule.min !== null) low = Math.min(low, rule.min);
        if (rule.max !== null) high = Math.max(high, rule.max);
      }
  const pad = 0.03 * (high - low) || 0.5;
  return (spans[name] = [low - pad, high + pad]);
}

function drawHistogram(canvas, name) {
  const [low, high] = spanOf(name);
  const kept = new Uint32Array(BINS), all = new Uint32Array(BINS), values = columns[name].values;
  for (let i = 0; i < count; i++) {
    if (values[i] === null) continue;
    const bin = Math.min(BINS - 1, Math.max(0, Math.floor(((values[i] - low) / (high - low)) * BINS)));
    all[bin]++;
    if (verdicts.rule[i] === null) kept[bin]++;
  }
  const width = (canvas.width = canvas.clientWidth || 300), height = (canvas.height = canvas.clientHeight || 90);
  const pen = canvas.getContext("2d"), top = Math.max(1, ...all);
  pen.clearRect(0, 0, width, height);
  // Square roots keep rare values visible beside common ones.
  const tall = (n) => Math.sqrt(n / top) * (height - 4);
  for (let bin = 0; bin < BINS; bin++) {
    const x = (bin * width) / BINS, wide = width / BINS - 1;
    pen.fillStyle = style("--line");
    pen.fillRect(x, height - tall(all[bin]), wide, tall(all[bin]));
    pen.fillStyle = style("--good");
    pen.fillRect(x, height - tall(kept[bin]), wide, tall(kept[bin]));
  }
}

// One end of a range: dragged with the pointer or moved with the arrow keys.
function makeHandle(rule, end, plot, changed) {
  const [low, high] = spanOf(rule.column), edge = end === "min" ? low : high;
  const handle = element("button", { class: "handle", role: "slider", "data-end": end, "aria-label": `${rule.column} ${end}`,
    "aria-valuemin": number(low), "aria-valuemax": number(high) });
  const place = () => {
    const value = rule[end] === null ? edge : rule[end];
    handle.style.left = `${(100 * (Math.min(high, Math.max(low, value)) - low)) / (high - low)}%`;
    handle.setAttribute("aria-valuenow", number(value));
    handle.setAttribute("aria-valuetext", rule[end] === null ? "open" : number(value));
  };
  const set = (value) => {
    const isOpen = end === "min" ? value <= low : value >= high;
    const other = rule[end === "min" ? "max" : "min"];
    if (other !== null) value = end === "min" ? Math.min(value, other) : Math.max(value, other);
    rule[end] = isOpen ? null : Number(value.toPrecision(4));
    changed();
  };
  handle.addEventListener("pointerdown", (event) => {
    handle.setPointerCapture(event.pointerId);
    event.preventDefault();
    handle.focus();
  });
  handle.addEventListener("pointermove", (event) => {
    if (!handle.hasPointerCapture(event.pointerId)) return;
    const box = plot.getBoundingClientRect();
    set(low + ((event.clientX - box.left) / box.width) * (high - low));
  });
  handle.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (!step) return;
    event.preventDefault();
    event.stopPropagation();
    set((rule[end] === null ? edge : rule[end]) + (step * (high - low)) / 100);
  });
  plot.append(handle);
  return place;
}

// The chart of one rule; returns its node and how to draw it again.
function makeChart(rule, changed) {
  const column = columns[rule.column] || { about: "", unit: "", values: [] };
  const unknown = column.values.filter((value) => value === null).length;
  const fell = element("span"), toggle = element("input", { type: "checkbox", checked: rule.on, "aria-label": `ask ${rule.column}`,
    onchange: () => { rule.on = toggle.checked; changed(); } });
  const node = element("div", { class: "chart", "data-column": rule.column },
    element("h3", {}, element("label", {}, toggle, " " + rule.column + (column.unit ? ` [${column.unit}]` : "")), fell),
    element("div", { class: "about" }, column.about + (unknown ? ` (${unknown} unknown)` : "")));
  const update = () => {
    const num = verdicts.rule.reduce((sum, found) => sum + (found === rule), 0);
    fell.textContent = num ? `-${num}` : "";
    node.classList.toggle("off", !rule.on);
  };
  if (rule.pattern || !columns[rule.column]) return { node, draw: update };
  if (isText(rule.column)) {
    const counts = new Array(column.words.length).fill(0);
    for (const value of column.values) if (value !== null) counts[value]++;
    const words = element("div", { class: "words" });
    [...new Set([...rule.among, ...column.words])].slice(0, 40).forEach((word) => {
      const box = element("input", { type: "checkbox", checked: rule.among.includes(word), onchange: () => {
        rule.among = box.checked ? [...rule.among, word] : rule.among.filter((one) => one !== word);
        changed();
      } });
      words.append(element("label", {}, box, ` ${word} (${counts[column.words.indexOf(word)] || 0})`));
    });
    node.append(words);
    return { node, draw: update };
  }
  const canvas = element("canvas", { "aria-hidden": "true" }), plot = element("div", { class: "plot" }, canvas);
  const places = ["min", "max"].map((end) => makeHandle(rule, end, plot, changed));
  const inputs = ["min", "max"].map((end) => element("input", { type: "text", inputmode: "decimal", "aria-label": `${rule.column} ${end} value`,
    onchange: (event) => {
      const text = event.target.value.trim();
      rule[end] = text === "" || !Number.isFinite(Number(text)) ? null : Number(text);
      changed();
    } }));
  node.append(plot, element("div", { class: "bar" }, inputs[0], "to", inputs[1]));
  const draw = () => {
    update();
    drawHistogram(canvas, rule.column);
    places.forEach((place) => place());
    inputs[0].value = number(rule.min);
    inputs[1].value = number(rule.max);
  };
  return { node, draw };
}

// [points, 5] float32: centre, speed, sigma.
function pathOf(i) {
  if (!data.paths[i]) return null;
  const bytes = Uint8Array.from(atob(data.paths[i]), (letter) => letter.charCodeAt(0));
  const flat = new Float32Array(bytes.buffer);
  return Array.from({ length: flat.length / 5 }, (_, k) => Array.from(flat.subarray(5 * k, 5 * k + 5)));
}

const warm = (share) => `hsl(${240 - 240 * Math.min(1, Math.max(0, share))} 70% 50%)`;

// The path in 3-D, coloured by speed (blue slow, red fast), discs of one sigma; turned by dragging or with arrow keys.
function drawPath(canvas, path, view) {
  const width = (canvas.width = canvas.clientWidth), height = (canvas.height = canvas.clientHeight);
  const pen = canvas.getContext("2d");
  const middle = [0, 1, 2].map((k) => (Math.min(...path.map((p) => p[k])) + Math.max(...path.map((p) => p[k]))) / 2);
  const extent = Math.max(1e-9, ...path.map((p) => Math.hypot(...[0, 1, 2].map((k) => p[k] - middle[k]))));
  const scale = (0.42 * Math.min(width, height)) / extent;
  const [cy, sy, cp, sp] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch), Math.sin(view.pitch)];
  const project = (p) => {
    const [x, y, z] = [0, 1, 2].map((k) => p[k] - middle[k]);
    const across = cy * x + sy * z, away = -sy * x + cy * z;
    return [width / 2 + scale * across, height / 2 + scale * (cp * y - sp * away)];
  };
  pen.clearRect(0, 0, width, height);
  const fastest = Math.max(1e-9, ...path.map((p) => p[3]));
  for (const p of path) {
    if (!(p[4] > 0)) continue;
    pen.beginPath();
    pen.arc(...project(p), Math.min(200, Math.max(1, scale * p[4])), 0, 7);
    pen.fillStyle = style("--soft");
    pen.fill();
  }
  pen.lineWidth = 3;
  for (let k = 1; k < path.length; k++) {
    pen.beginPath();
    pen.moveTo(...project(path[k - 1]));
    pen.lineTo(...project(path[k]));
    pen.strokeStyle = warm(path[k][3] / fastest);
    pen.stroke();
  }
  pen.fillStyle = style("--good");
  pen.beginPath();
  pen.arc(...project(path[0]), 5, 0, 7);
  pen.fill();
  pen.fillText("start", project(path[0])[0] + 8, project(path[0])[1]);
}

function drawCurves(canvas, path, unit) {
  const width = (canvas.width = canvas.clientWidth), height = (canvas.height = canvas.clientHeight), pen = canvas.getContext("2d");
  pen.clearRect(0, 0, width, height);
  [[3, "speed", unit + "/s", style("--accent")], [4, "sigma", unit, style("--bad")]].forEach(([k, name, units, colour], row) => {
    const top = Math.max(1e-9, ...path.map((p) => (Number.isFinite(p[k]) ? p[k] : 0)));
    const base = ((row + 1) * height) / 2 - 4, tall = height / 2 - 24;
    pen.strokeStyle = pen.fillStyle = colour;
    pen.beginPath();
    path.forEach((p, j) => { if (Number.isFinite(p[k])) pen.lineTo((j * (width - 1)) / (path.length - 1), base - (p[k] / top) * tall); });
    pen.stroke();
    pen.fillText(`${name}, up to ${number(top)} ${units}`, 6, base - tall - 6);
  });
}
