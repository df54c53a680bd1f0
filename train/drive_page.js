"use strict";
const KEYS = "wsadikjl", DEAD_ZONE_PX = 24, MAX_PATH = 4000, RETRY_MS = 1000;
const at = (id) => document.getElementById(id);
const typed = new Set(), touched = new Set(), dragged = new Set();
let socket = null, sent = "", farewell = "", drives = false, browsers = 1, paused = false, interval = 500, path = [];
let waiting = [], shown = 0, timer = null;

function connect() {
  socket = new WebSocket(`ws://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { sent = farewell = ""; if (document.hidden) pause(true); };
  socket.onmessage = (event) => typeof event.data === "string" ? read(JSON.parse(event.data)) : receive(event.data);
  socket.onclose = (event) => {
    drives = false;
    document.body.dataset.connected = "no";
    if (event.reason) farewell = event.reason;
    at("role").textContent = farewell || "no connection; the world stands still";
    setTimeout(connect, RETRY_MS);
  };
}

function read(facts) {
  document.body.dataset.connected = "yes";
  if (facts.kind === "hello") {
    interval = 1000 / facts.fps;
    path = facts.path;
    waiting = [];
    at("take").textContent = facts.take || "not begun";
  } else if (facts.kind === "status") {
    if (facts.drives && !drives) { paused = false; sent = ""; }
    drives = facts.drives;
    document.body.dataset.drives = drives ? "yes" : "no";
    at("drive").hidden = drives;
    browsers = facts.browsers;
    tell();
    role();
  } else {
    path.push(...facts.places);
    if (path.length > MAX_PATH) path = path.slice(-MAX_PATH);
    at("latency").textContent = `${(1000 * facts.latency_s).toFixed(0)} ms a chunk of ${facts.frames} frames`;
    at("rate").textContent = `${facts.frames_per_s.toFixed(1)} frames/s`;
    at("memory").textContent = `${(facts.memory_bytes / 2 ** 20).toFixed(0)} MiB`;
    at("chunk").textContent = `${facts.chunk}, keys ${facts.keys || "none"}`;
  }
  if (path.length) {
    const [right, ahead, heading] = path[path.length - 1];
    at("position").textContent = `${right.toFixed(2)} m right, ${ahead.toFixed(2)} m ahead, ${(heading * 180 / Math.PI).toFixed(1)} deg`;
    document.body.dataset.place = `${right} ${ahead} ${heading}`;
  }
  drawPath();
}

function role() {
  const others = browsers > 1 ? `, ${browsers - 1} more connected` : "";
  at("role").textContent = (drives ? (paused ? "paused" : "you drive") : "you watch") + others;
}

// Frames come a chunk at a time and are shown at the video's rate; a long queue is shown faster.
function receive(data) {
  waiting.push(data);
  if (timer === null) timer = setTimeout(play, 0);
}

async function play() {
  const data = waiting.shift();
  if (data === undefined) { timer = null; return; }
  const begun = performance.now();
  const picture = await createImageBitmap(new Blob([data], {type: "image/jpeg"}));
  const canvas = at("frame");
  if (canvas.width !== picture.width) canvas.width = picture.width;
  if (canvas.height !== picture.height) canvas.height = picture.height;
  canvas.getContext("2d").drawImage(picture, 0, 0);
  document.body.dataset.frames = ++shown;
  const pace = interval / Math.max(1, waiting.length / 8);
  timer = setTimeout(play, Math.max(0, pace - (performance.now() - begun)));
}

function drawPath() {
  const canvas = at("path"), pen = canvas.getContext("2d"), size = canvas.width;
  pen.clearRect(0, 0, size, size);
  if (!path.length) return;
  const xs = path.map((p) => p[0]), zs = path.map((p) => p[1]);
  const low = [Math.min(...xs), Math.min(...zs)], high = [Math.max(...xs), Math.max(...zs)];
  const scale = 0.85 * size / Math.max(high[0] - low[0], high[1] - low[1], 1);
  const point = ([x, z]) => [size / 2 + scale * (x - (low[0] + high[0]) / 2), size / 2 - scale * (z - (low[1] + high[1]) / 2)];
  pen.strokeStyle = "#ffdc00"; pen.lineWidth = 2;
  pen.beginPath();
  path.forEach((p) => pen.lineTo(...point(p)));
  pen.stroke();
  const [x, y] = point(path[path.length - 1]), heading = path[path.length - 1][2];
  pen.fillStyle = "#fff";
  pen.beginPath();
  for (const turn of [0, 2.5, -2.5]) pen.lineTo(x + 10 * Math.sin(heading + turn), y - 10 * Math.cos(heading + turn));
  pen.fill();
}

function tell() {
  const keys = [...KEYS].filter((key) => typed.has(key) || touched.has(key) || dragged.has(key)).join("");
  for (const button of document.querySelectorAll("#keys button")) button.classList.toggle("held", keys.includes(button.dataset.key));
  if (drives && !paused && keys !== sent && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({keys: sent = keys}));
}

function pause(value) {
  if (!drives || socket.readyState !== WebSocket.OPEN) return;
  paused = value;
  sent = "";
  socket.send(JSON.stringify({paused}));
  role();
  tell();
}

function letGo() { typed.clear(); touched.clear(); dragged.clear(); tell(); }

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.toLowerCase();
  if (key === " ") { event.preventDefault(); if (!event.repeat) pause(!paused); }
  if (KEYS.includes(key)) { typed.add(key); tell(); }
});
addEventListener("keyup", (event) => { typed.delete(event.key.toLowerCase()); tell(); });
addEventListener("blur", letGo);
let wasPaused = false;
document.addEventListener("visibilitychange", () => {
  letGo();
  if (document.hidden) { wasPaused = paused; pause(true); } else pause(wasPaused);
});

// A drag is a stick: how far it is from where it began says which of the turning keys are down.
const view = at("view");
let origin = null;
view.addEventListener("pointerdown", (event) => { origin = [event.clientX, event.clientY]; view.setPointerCapture(event.pointerId); });
view.addEventListener("pointermove", (event) => {
  if (origin === null) return;
  const x = event.clientX - origin[0], y = event.clientY - origin[1];
  dragged.clear();
  if (Math.abs(x) > DEAD_ZONE_PX) dragged.add(x > 0 ? "d" : "a");
  if (Math.abs(y) > DEAD_ZONE_PX) dragged.add(y > 0 ? "k" : "i");
  tell();
});
for (const kind of ["pointerup", "pointercancel"]) view.addEventListener(kind, () => { origin = null; dragged.clear(); tell(); });

for (const button of document.querySelectorAll("#keys button")) {
  button.addEventListener("pointerdown", (event) => { button.setPointerCapture(event.pointerId); touched.add(button.dataset.key); tell(); });
  for (const kind of ["pointerup", "pointercancel"]) button.addEventListener(kind, () => { touched.delete(button.dataset.key); tell(); });
}
at("pause").addEventListener("click", (event) => { pause(!paused); event.target.blur(); });
at("restart").addEventListener("click", (event) => {
  if (drives) { socket.send(JSON.stringify({restart: true})); if (paused) pause(false); }
  event.target.blur();
});
at("drive").addEventListener("click", () => socket.send(JSON.stringify({drive: true})));
connect();
