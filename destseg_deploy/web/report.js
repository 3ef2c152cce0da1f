"use strict";
// The report: thresholds that can be moved, and everything that follows them.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const good = data.images.filter((image) => !image.bad), bad = data.images.filter((image) => image.bad);
const state = { score: data.point.score, pixel: data.point.pixel };
const limits = {
  score: {
    title: "Image score", of: "score", rejected: "good parts rejected", missed: "defects missed",
    help: "A part is NG when its score is greater.", next: "new good parts rejected",
    none: "reject no good part", all: "miss no defect",
  },
  pixel: {
    title: "Pixel value", of: "peak", rejected: "good parts with an outline", missed: "defects without an outline",
    help: "An outline is drawn around greater values of the anomaly map. It decides no verdict.",
    next: "new good parts with an outline", none: "outline no good part", all: "outline each defect",
  },
};
const tiles = [];
const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Return a bound, part / whole, in per cent: three digits, rounded up, so that it holds (thresholds.py). */
function atMost(part, whole) {
  let digits = 0;
  while (part * 10 ** (digits + 2) < 100 * whole) digits += 1;
  return `${Number((Math.ceil((part * 10 ** (digits + 2)) / whole) / 10 ** digits).toPrecision(6))} %`;
}

function svg(tag, attributes = {}, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

/** Count the wrong verdicts at a threshold, and what the good images guarantee (thresholds.py). */
function judge(of, threshold) {
  const rejected = good.filter((image) => isNG(image[of], threshold)).length;
  const missed = bad.filter((image) => !isNG(image[of], threshold)).length;
  return { rejected, missed, guarantee: atMost(rejected + 1, good.length + 1) };
}

/** Return the largest float32 below a positive one. */
function justBelow(value) {
  const bits = new Uint32Array(new Float32Array([value]).buffer);
  if (value > 0) bits[0] -= 1;
  return new Float32Array(bits.buffer)[0];
}

/** Return how a slider's place in [0, 1] and a threshold belong together. */
function scaleOf(values) {
  const low = Math.min(...values), high = Math.max(...values);
  const bottom = Math.max(low, high / 1e4);
  if (bottom > 0 && high / bottom > 20) {
    const from = Math.log(bottom / 1.3), to = Math.log(Math.min(1, high * 1.1));
    return {
      kind: "logarithmic", place: (t) => (Math.log(Math.max(t, 1e-12)) - from) / (to - from),
      value: (p) => Math.exp(from + p * (to - from)),
    };
  }
  const margin = Math.max((high - low) * 0.05, 1e-6), from = Math.max(0, low - margin);
  const to = Math.min(1, high + margin);
  return { kind: "linear", place: (t) => (t - from) / (to - from), value: (p) => from + p * (to - from) };
}

/** Make one card: histogram, slider, counts. Returns what brings it up to date. */
function limitCard(name) {
  const words = limits[name], scale = scaleOf(data.images.map((image) => image[words.of]));
  const inside = (place) => Math.min(1, Math.max(0, place));
  const slider = make("input", { type: "range", id: `${name}-slider`, min: 0, max: 1000, step: 1, ariaLabel: `${words.title} threshold` });
  const number = make("input", { type: "number", id: `${name}-value`, min: 0, max: 1, step: "any", ariaLabel: `${words.title} threshold` });
  const counts = { rejected: make("b", { id: `${name}-rejected` }), missed: make("b", { id: `${name}-missed` }), guarantee: make("b", { id: `${name}-guarantee` }) };
  const plot = histogram(words.of, scale, inside);
  const set = (threshold) => {
    if (!(threshold >= 0 && threshold <= 1)) return;
    state[name] = threshold;
    refresh();
  };
  slider.addEventListener("input", () => set(Number(scale.value(slider.value / 1000).toPrecision(4))));
  number.addEventListener("change", () => set(number.value === "" ? NaN : Number(number.value)));
  const pick = (label, threshold) => {
    const button = make("button", { textContent: label });
    button.addEventListener("click", () => set(threshold));
    return button;
  };
  const [first, last] = [Math.min(...bad.map((i) => i[words.of])), Math.max(...good.map((i) => i[words.of]))];
  const card = make("div", { className: "card" },
    make("div", { className: "row" }, make("h3", { textContent: words.title }), make("span", { className: "push" }, number)),
    make("p", { className: "small soft", textContent: words.help }),
    plot.element, slider,
    make("div", { className: "ends small soft" }, brief(scale.value(0)), make("span", { textContent: scale.kind === "linear" ? "" : "logarithmic scale" }), brief(scale.value(1))),
    make("ul", { className: "counts" },
      countLine(words.rejected, counts.rejected, "--good"), countLine(words.missed, counts.missed, "--bad"),
      ...(data.trained_on.good ? [] : [countLine(`${words.next}, at most (guaranteed)`, counts.guarantee)])),
    make("div", { className: "row small" }, pick(data.point.source, data.point[name]), pick(words.none, last), pick(words.all, justBelow(first))));
  $("sliders").append(card);
  return () => {
    const threshold = state[name], judged = judge(words.of, threshold);
    slider.value = 1000 * inside(scale.place(threshold));
    if (Number(number.value) !== threshold || number.value === "") number.value = Number(threshold.toPrecision(6));
    counts.rejected.textContent = `${judged.rejected} of ${good.length} (${percent(judged.rejected / good.length)})`;
    counts.missed.textContent = `${judged.missed} of ${bad.length} (${percent(judged.missed / bad.length)})`;
    counts.guarantee.textContent = judged.guarantee;
    plot.move(inside(scale.place(threshold)));
  };
}

function countLine(words, count, colour) {
  const name = make("span", { textContent: words });
  if (colour) {
    name.className = "key";
    name.style.setProperty("--colour", `var(${colour})`);
  }
  return make("li", {}, name, count);
}

/** Draw good parts upwards and defects downwards, and the threshold across both. */
function histogram(of, scale, inside) {
  const bins = 50, wide = 500, middle = 55;
  const count = (images) => {
    const bars = new Array(bins).fill(0);
    for (const image of images) bars[Math.min(bins - 1, Math.floor(inside(scale.place(image[of])) * bins))] += 1;
    return bars;
  };
  const plot = svg("svg", { viewBox: `0 0 ${wide} ${2 * middle}`, preserveAspectRatio: "none", class: "plot", role: "img" });
  plot.append(svg("title", {}, "Good parts above the line, defects below it"));
  const reject = svg("rect", { y: 0, height: 2 * middle, fill: NG, "fill-opacity": 0.07 });
  plot.append(reject);
  for (const [images, up, colour] of [[good, true, "var(--good)"], [bad, false, "var(--bad)"]]) {
    const bars = count(images), most = Math.max(...bars, 1);
    bars.forEach((n, i) => {
      const high = n ? Math.max(2, (n / most) * (middle - 4)) : 0;
      plot.append(svg("rect", { x: (i * wide) / bins + 0.5, width: wide / bins - 1, y: up ? middle - high : middle, height: high, fill: colour }));
    });
  }
  plot.append(svg("line", { x1: 0, x2: wide, y1: middle, y2: middle, stroke: "#9aa3af" }));
  const mark = svg("line", { y1: 0, y2: 2 * middle, stroke: "var(--text)", "stroke-width": 2, "vector-effect": "non-scaling-stroke" });
  plot.append(mark);
  return {
    element: plot,
    move: (place) => {
      for (const end of ["x1", "x2"]) mark.setAttribute(end, place * wide);
      reject.setAttribute("x", place * wide);
      reject.setAttribute("width", (1 - place) * wide);
    },
  };
}

/** Make the tile of an image; its canvas is drawn when it comes into sight. */
function makeTile(image) {
  const { width, height } = image.picture, scale = Math.min(1, 256 / Math.max(width, height));
  const canvas = make("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
  const badge = make("span"), score = make("b"), wrong = make("span", { className: "push small fault" });
  const element = make("button", { className: "tile" },
    make("div", { className: "frame" }, canvas),
    make("div", { className: "words" },
      make("div", { className: "row", style: "gap: 7px" }, badge, score),
      make("p", { className: "small cut", textContent: `${image.kind}/${image.name}`, title: image.name }),
      make("div", { className: "row small soft" }, `raw ${brief(image.score)}`, wrong)));
  element.addEventListener("click", () => openLarge(image));
  const tile = { image, element, canvas, badge, score, wrong, seen: false };
  element.tile = tile;
  return tile;
}

function drawTile(tile) {
  if (tile.seen && !tile.element.hidden) drawPicture(tile.canvas, tile.image.picture, state.pixel, shownLayers());
}

function shownLayers() {
  return { heat: $("heat").checked, outline: $("outline").checked, truth: $("truth").checked };
}

/** Say what is wrong with an image's verdict, if anything is. */
function fault(image) {
  const isBad = isNG(image.score, state.score);
  return isBad === image.bad ? "" : isBad ? "rejected" : "missed";
}

function isShown(image) {
  const choice = $("filter").value;
  if (choice === "all") return true;
  if (choice === "wrong") return fault(image) !== "";
  return choice.startsWith("kind:") ? image.kind === choice.slice(5) : fault(image) === choice;
}

let sight;
function makeTiles() {
  sight = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      entry.target.tile.seen = entry.isIntersecting;
      drawTile(entry.target.tile);
    }
  }, { rootMargin: "200px" });
  tiles.push(...data.images.filter((image) => image.picture).map(makeTile));
  orderTiles();
  for (const tile of tiles) sight.observe(tile.element);
  const choices = [["all", "all images"], ["wrong", "wrong verdicts"], ["rejected", "good parts rejected"], ["missed", "defects missed"]];
  for (const kind of new Set(data.images.map((image) => image.kind))) choices.push([`kind:${kind}`, kind]);
  for (const [value, textContent] of choices) $("filter").append(make("option", { value, textContent }));
  $("filter").addEventListener("change", refresh);
  $("order").addEventListener("change", orderTiles);
  for (const layer of ["heat", "outline", "truth"]) $(layer).addEventListener("change", refresh);
}

function orderTiles() {
  const sign = Number($("order").value);
  tiles.sort((a, b) => sign * (a.image.score - b.image.score));
  $("tiles").append(...tiles.map((tile) => tile.element));
}

function refreshTiles() {
  for (const tile of tiles) {
    const { image } = tile, wrong = fault(image);
    tile.element.hidden = !isShown(image);
    tile.element.classList.toggle("wrong", wrong !== "");
    showBadge(tile.badge, isNG(image.score, state.score));
    tile.score.textContent = told(normalized(image.score, state.score));
    tile.wrong.textContent = wrong;
    drawTile(tile);
  }
  const shown = tiles.filter((tile) => !tile.element.hidden).length;
  const all = tiles.length === data.images.length ? "" :
    ` of ${tiles.length} pictures, chosen from ${data.images.length} images: wrong verdicts, and scores near the threshold`;
  $("shown").textContent = `${shown}${all || ` of ${tiles.length} images`}. Normalised score in bold: above 0.5 is NG. A wrong verdict has a red frame.`;
}

let large = null;
function openLarge(image) {
  large = image;
  $("large-canvas").width = 720;
  $("large-canvas").height = Math.round((720 * image.picture.height) / image.picture.width);
  if (!$("large").open) $("large").showModal();
  refreshLarge();
}

function refreshLarge() {
  if (!large) return;
  $("large-name").textContent = `${large.kind}/${large.name}`;
  showBadge($("large-badge"), isNG(large.score, state.score));
  $("large-score").textContent = told(normalized(large.score, state.score));
  $("large-raw").textContent = `raw ${brief(large.score)}, threshold ${brief(state.score)}; highest map value ${brief(large.peak)}, outline above ${brief(state.pixel)}`;
  drawPicture($("large-canvas"), large.picture, state.pixel, shownLayers());
}

/** Step through the pictures that are shown. */
function step(by) {
  const shown = tiles.filter((tile) => !tile.element.hidden).map((tile) => tile.image);
  const next = shown[shown.indexOf(large) + by];
  if (large && next) openLarge(next);
}

function refreshDefects() {
  const head = ["", "images", "found", "missed", "outlined", "AUROC", "lowest score"];
  const rows = data.defects.map((row) => {
    const images = bad.filter((image) => image.kind === row.defect);
    const found = images.filter((image) => isNG(image.score, state.score)).length;
    const outlined = images.filter((image) => isNG(image.peak, state.pixel)).length;
    return [row.defect, row.images, found, row.images - found, outlined, row.image_auroc.toFixed(4), brief(row.lowest_score)];
  });
  $("defects").replaceChildren(make("tr", {}, ...head.map((textContent) => make("th", { textContent }))),
    ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", { textContent: cell })))));
}

/** Draw a curve in the unit square; returns what moves its dot. */
function chart(curve) {
  const left = 46, top = 10, side = 190, x = (v) => left + v * side, y = (v) => top + (1 - v) * side;
  const plot = svg("svg", { viewBox: `0 0 ${left + side + 12} ${top + side + 36}`, role: "img" });
  for (const tick of [0, 0.5, 1]) {
    plot.append(svg("line", { x1: x(0), x2: x(1), y1: y(tick), y2: y(tick), stroke: "#e3e6eb" }));
    plot.append(svg("line", { x1: x(tick), x2: x(tick), y1: y(0), y2: y(1), stroke: "#e3e6eb" }));
    plot.append(svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)));
    plot.append(svg("text", { x: x(tick), y: y(0) + 15, "text-anchor": "middle" }, String(tick)));
  }
  plot.append(svg("text", { x: x(0.5), y: y(0) + 30, "text-anchor": "middle" }, curve.x));
  plot.append(svg("text", { transform: `translate(10 ${y(0.5)}) rotate(-90)`, "text-anchor": "middle" }, curve.y));
  const points = curve.points.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join(" ");
  plot.append(svg("polyline", { points, fill: "none", stroke: "var(--accent)", "stroke-width": 2, "stroke-linejoin": "round" }));
  const dot = svg("circle", { r: 5, fill: "var(--bad)", stroke: "#fff", "stroke-width": 1.5 });
  if (curve.kind) plot.append(dot);
  $("curves").append(make("div", { className: "card" }, make("h3", { textContent: curve.title }), plot));
  return () => {
    const { rejected, missed } = judge("score", state.score), found = bad.length - missed;
    const places = { roc: [rejected / good.length, found / bad.length], pr: [found / bad.length, found / Math.max(found + rejected, 1)] };
    if (!curve.kind) return;
    dot.setAttribute("cx", x(places[curve.kind][0]));
    dot.setAttribute("cy", y(places[curve.kind][1]));
  };
}

function writeFacts() {
  $("title").textContent = data.title;
  document.title = data.title;
  $("about").textContent = data.about;
  $("foot").textContent = data.foot;
  const seen = data.trained_on;
  if (seen.images) {
    const words = `${seen.images} of ${data.images.length} images were trained on, ${seen.good} of them good. The accuracy is too high, ` +
      "and more of the new good parts will be rejected. Measure on images that were not.";
    $("numbers").before(make("p", { className: "note", id: "seen", textContent: words }));
  }
  for (const [name, value] of data.metrics) $("numbers").append(make("div", { className: "card" }, make("span", { className: "small soft", textContent: name }), make("b", { textContent: value.toFixed(4) })));
  for (const { title, rows } of data.facts) {
    const list = make("dl", { className: "small" });
    for (const [name, value] of rows) list.append(make("dt", { textContent: name }), make("dd", { textContent: value }));
    $("facts").append(make("div", { className: "card" }, make("h3", { textContent: title }), list));
  }
}

function refreshCommand() {
  const changed = state.score !== data.point.score || state.pixel !== data.point.pixel;
  $("command").textContent = `${data.command} --value ${state.score} --pixel ${state.pixel}`;
  $("advice").textContent = changed || !data.threshold ?
    `Sets these thresholds by hand. ${data.trained_on.good ? "" : "The guarantee holds for a threshold that good parts alone decide. "}The counts of misses flatter a threshold that was chosen by looking at them.` :
    `The artifact's thresholds now: ${data.threshold.rule}.`;
}

const moves = [];
let waiting = false;
/** Bring everything up to date, once for each frame of the screen. */
function refresh() {
  for (const move of moves) move();
  refreshCommand();
  refreshDefects();
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    refreshTiles();
    refreshLarge();
  });
}

writeFacts();
moves.push(limitCard("score"), limitCard("pixel"), ...data.curves.map(chart));
makeTiles();
$("copy").addEventListener("click", () => copyText($("command").textContent, $("copy")));
$("large-close").addEventListener("click", () => $("large").close());
$("large").addEventListener("close", () => (large = null));
$("large").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
refresh();
