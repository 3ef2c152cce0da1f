"use strict";
// The page: images go to the server one after another; thresholds are applied here.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const MOST = 60; // results that stay on the page
let saved = data.threshold;
const state = saved ? { score: saved.score, pixel: saved.pixel } : { score: 0.5, pixel: 0.5 };
const results = [];
// Small values are where most scores are, so the slider gives them more room.
const place = (value) => Math.sqrt(value), valueAt = (at) => Number((at * at).toPrecision(4));

/** Ask the server; an answer that is no success becomes an error in its own words. */
async function ask(path, body) {
  let response;
  try {
    response = await fetch(path, { method: "POST", body });
  } catch {
    throw new Error("The server does not answer. Is destseg-page still running?");
  }
  const answer = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw new Error(answer.error.replace(/^image: /, "")); // its name is shown before it
  return answer;
}

const queue = [];
let working = false;
/** Score files in turn; the server takes one at a time anyway. */
async function take(files) {
  queue.push(...files);
  if (working) return;
  working = true;
  while (queue.length) {
    const file = queue.shift();
    $("busy").textContent = `Scoring ${file.name || "the picture"}${queue.length ? `, ${queue.length} more` : ""} …`;
    try {
      if (file.size > data.limit) throw new Error(`${(file.size / 2 ** 20).toFixed(0)} MiB, the limit is ${data.limit / 2 ** 20} MiB. Send a smaller image, or start destseg-page with a larger --max-mib.`);
      show(file.name || "pasted picture", await ask("/api/look", file));
    } catch (error) {
      showError(file.name || "pasted picture", error.message);
    }
  }
  working = false;
  $("busy").textContent = "";
}

function show(name, answer) {
  const { width, height } = answer.picture, scale = Math.max(1, 640 / Math.max(width, height));
  const canvas = make("canvas", { width: Math.round(scale * width), height: Math.round(scale * height) }), badge = make("span"), score = make("b"), raw = make("span", { className: "small soft" });
  const element = make("div", { className: "card result" }, canvas,
    make("div", { className: "row" }, badge, score, raw),
    make("p", { className: "small soft cut", title: name, textContent: `${name}, ${answer.size[0]}×${answer.size[1]} pixels, ${answer.milliseconds} ms` }));
  add({ ...answer, element, canvas, badge, score: answer.score, shown: score, raw });
}

function showError(name, message) {
  add({ element: make("p", { className: "note wrong", textContent: `${name}: ${message}` }) });
}

function add(result) {
  results.unshift(result);
  $("results").prepend(result.element);
  for (const old of results.splice(MOST)) old.element.remove();
  refresh();
}

function refreshResult(result) {
  if (!result.picture) return;
  showBadge(result.badge, isNG(result.score, state.score));
  result.shown.textContent = told(normalized(result.score, state.score));
  result.raw.textContent = `raw ${brief(result.score)}, threshold ${brief(state.score)}`;
  drawPicture(result.canvas, result.picture, state.pixel, { heat: $("heat").checked, outline: $("outline").checked, truth: false });
}

/** Show a tick for each score above the slider. */
function refreshPlot() {
  const scored = results.filter((result) => result.picture), box = $("score-plot");
  box.className = scored.length ? "ticks" : "";
  box.replaceChildren(...scored.map((result) => {
    const tick = make("i", { className: isNG(result.score, state.score) ? "ng" : "ok" });
    tick.style.left = `${100 * Math.min(1, place(result.score))}%`;
    return tick;
  }));
}

let waiting = false;
function refresh() {
  for (const name of ["score", "pixel"]) {
    $(`${name}-slider`).value = 1000 * place(state[name]);
    const number = $(`${name}-value`);
    if (Number(number.value) !== state[name] || number.value === "") number.value = Number(state[name].toPrecision(6));
  }
  const changed = !saved || saved.score !== state.score || saved.pixel !== state.pixel;
  $("save").disabled = $("reset").disabled = !changed;
  $("reset").hidden = !saved;
  $("rule").textContent = !saved ? "The artifact has no threshold yet: this one is only a beginning." :
    changed ? "Not saved. A saved one counts as set by hand; destseg-threshold --good sets one with a guarantee." : `Saved: ${saved.rule}.`;
  const scored = results.filter((result) => result.picture), bad = scored.filter((result) => isNG(result.score, state.score)).length;
  $("summary").textContent = scored.length ? `${scored.length} ${scored.length === 1 ? "image" : "images"}: ${scored.length - bad} OK, ${bad} NG` : "No images yet";
  $("clear").hidden = !results.length;
  refreshPlot();
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    results.forEach(refreshResult);
  });
}

async function save() {
  $("save").disabled = true;
  try {
    saved = await ask("/api/threshold", JSON.stringify(state));
    Object.assign(state, { score: saved.score, pixel: saved.pixel });
    refresh();
  } catch (error) {
    refresh();
    $("rule").textContent = error.message;
  }
}

function listen() {
  for (const name of ["score", "pixel"]) {
    const set = (value) => {
      if (value >= 0 && value <= 1) state[name] = value;
      refresh();
    };
    $(`${name}-slider`).addEventListener("input", (event) => set(valueAt(event.target.value / 1000)));
    $(`${name}-value`).addEventListener("change", (event) => set(event.target.value === "" ? NaN : Number(event.target.value)));
  }
  $("save").addEventListener("click", save);
  $("reset").addEventListener("click", () => {
    Object.assign(state, { score: saved.score, pixel: saved.pixel });
    refresh();
  });
  $("clear").addEventListener("click", () => {
    results.splice(0).forEach((result) => result.element.remove());
    refresh();
  });
  $("heat").addEventListener("change", refresh);
  $("outline").addEventListener("change", refresh);
  $("files").addEventListener("change", (event) => {
    take([...event.target.files]);
    event.target.value = "";
  });
  document.addEventListener("paste", (event) => take([...event.clipboardData.files]));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") take([...event.dataTransfer.files]);
    });
  }
}

$("title").textContent = document.title = data.name;
$("about").textContent = data.about;
$("foot").textContent = `destseg-deploy ${data.version}. Programs call this server with KServe v2: POST /v2/models/${data.name}/infer`;
listen();
refresh();
