"use strict";
// Draws what destseg_deploy/web/encoding.py encodes: image, heat, outline, ground truth. The heat
// has the rule of destseg_deploy/pictures/overlays.py: the pixel threshold is in its middle.

const NG = "#d02c2c", TRUTH = "#00e5ff", FLOOR = 0.25, OPACITY = 0.6;

// Plasma in 17 steps, linear in between.
const PLASMA = ("0d08873105974c02a16600a77e03a89511a1aa2395bc3587cc4778d9586ae56b5df07f4ff89441fdab33" +
  "fdc328f9dd25f0f921").match(/../g).map((pair) => parseInt(pair, 16));

/** Return [red, green, blue] of a heat in [0, 1]. */
function plasma(heat) {
  const place = heat * 16, step = Math.min(15, Math.floor(place)), rest = place - step;
  return [0, 1, 2].map((c) => PLASMA[3 * step + c] * (1 - rest) + PLASMA[3 * step + 3 + c] * rest);
}

/** Return the heat of a map value: 0.5 at the threshold, 1 at twice it or at 1. */
function heatOf(value, threshold) {
  const below = Math.max(threshold, 1e-6), above = Math.max(Math.min(threshold, 1 - threshold), 1e-6);
  const heat = value > threshold ? 0.5 + (value - threshold) * (0.5 / above) : value * (0.5 / below);
  return Math.min(1, heat);
}

/** Map a raw score to [0, 1] with the threshold at 0.5, as Threshold.normalized in Python. */
function normalized(score, threshold) {
  const raw = Math.fround(score), limit = Math.fround(threshold);
  if (raw > limit) return Math.min(1, 0.5 + (0.5 * (raw - limit)) / Math.max(1 - limit, 1e-6));
  return limit > 0 ? Math.max(0, (0.5 * raw) / limit) : 0;
}

/** Judge a score or a peak, compared as float32 like everywhere else. */
function isNG(value, threshold) {
  return Math.fround(value) > Math.fround(threshold);
}

/** Return a number in as few digits as tell it from its like. */
function brief(value) {
  if (value >= 0.0995) return value.toFixed(3);
  return value >= 1e-4 || value === 0 ? String(Number(value.toPrecision(2))) : value.toExponential(1);
}

/** Return a normalised score in as many digits, up to 9, as tell it from 0.5. */
function told(value) {
  let digits = 2;
  while (value !== 0.5 && digits < 9 && Number(value.toFixed(digits)) === 0.5) digits += 1;
  return value.toFixed(digits);
}

/** Return the map values of a picture, row by row: rounded down, but for the highest one. */
function valuesOf(picture) {
  if (!picture.values) {
    const bytes = atob(picture.levels);
    picture.values = Float32Array.from(bytes, (c) => (c.charCodeAt(0) / 255) ** 2);
    const highest = picture.values.reduce((best, value, i, all) => (value > all[best] ? i : best), 0);
    picture.values[highest] = picture.peak;
  }
  return picture.values;
}

/** Load the image of a picture once. */
function loadImage(picture) {
  picture.loading = picture.loading || new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("the image cannot be shown"));
    image.src = picture.image;
  });
  return picture.loading;
}

/** Draw a picture into a canvas, which keeps its size in pixels. */
async function drawPicture(canvas, picture, pixel, shown) {
  const image = await loadImage(picture), context = canvas.getContext("2d");
  const scale = canvas.width / picture.width;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  if (shown.heat) context.drawImage(heatCanvas(picture, pixel), 0, 0, canvas.width, canvas.height);
  context.save();
  context.scale(scale, scale);
  context.lineJoin = "round";
  const stroke = Math.max(1, canvas.width / 180) / scale;
  if (shown.truth) line(context, truthPath(picture), TRUTH, stroke);
  if (shown.outline) line(context, outlinePath(picture, pixel), "#fff", stroke);
  context.restore();
}

function line(context, path, colour, stroke) {
  for (const [style, width] of [["rgba(0, 0, 0, 0.55)", 2.4 * stroke], [colour, stroke]]) {
    context.strokeStyle = style;
    context.lineWidth = width;
    context.stroke(path);
  }
}

/** Return a small canvas with the heat, one pixel for each cell of the map. */
function heatCanvas(picture, pixel) {
  const canvas = document.createElement("canvas");
  canvas.width = picture.columns;
  canvas.height = picture.rows;
  const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
  valuesOf(picture).forEach((value, i) => {
    const heat = heatOf(value, pixel), ramp = Math.min(1, Math.max(0, (heat - FLOOR) / (0.5 - FLOOR)));
    pixels.data.set(plasma(heat), 4 * i);
    pixels.data[4 * i + 3] = 255 * OPACITY * ramp * ramp * (3 - 2 * ramp);
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function truthPath(picture) {
  const path = new Path2D();
  for (const outline of picture.truth) {
    path.moveTo(outline[0] + 0.5, outline[1] + 0.5);
    for (let i = 2; i < outline.length; i += 2) path.lineTo(outline[i] + 0.5, outline[i + 1] + 0.5);
    path.closePath();
  }
  return path;
}

// Marching squares: the corners of a square are the centres of four cells. Bit 1 is the upper left
// corner, 2 the upper right, 4 the lower right, 8 the lower left; sides are top, right, bottom, left.
const SEGMENTS = {
  1: [[3, 0]], 2: [[0, 1]], 3: [[3, 1]], 4: [[1, 2]], 5: [[3, 0], [1, 2]], 6: [[0, 2]], 7: [[3, 2]],
  8: [[2, 3]], 9: [[2, 0]], 10: [[0, 1], [2, 3]], 11: [[2, 1]], 12: [[1, 3]], 13: [[1, 0]], 14: [[0, 3]],
};

/** Return the outline of the cells above the pixel threshold, in pixels of the picture. */
function outlinePath(picture, pixel) {
  const { columns, rows } = picture, values = valuesOf(picture), path = new Path2D();
  const wide = picture.width / columns, high = picture.height / rows;
  pixel = Math.fround(pixel);  // as isNG compares
  // Outside of the map all is below the threshold, so that every outline closes.
  const at = (x, y) => (x < 0 || y < 0 || x >= columns || y >= rows ? 0 : values[y * columns + x]);
  for (let y = -1; y < rows; y += 1) {
    for (let x = -1; x < columns; x += 1) {
      const corners = [at(x, y), at(x + 1, y), at(x + 1, y + 1), at(x, y + 1)];
      const above = corners.reduce((bits, value, i) => bits | (value > pixel ? 1 << i : 0), 0);
      for (const sides of SEGMENTS[above] || []) {
        const [[x0, y0], [x1, y1]] = sides.map((side) => crossing(side, corners, pixel));
        path.moveTo((x + 0.5 + x0) * wide, (y + 0.5 + y0) * high);
        path.lineTo((x + 0.5 + x1) * wide, (y + 0.5 + y1) * high);
      }
    }
  }
  return path;
}

/** Return where on a side of a square the values cross the threshold, from its upper left corner. */
function crossing(side, corners, pixel) {
  const [from, to] = [[0, 1], [1, 2], [3, 2], [0, 3]][side];
  const share = (pixel - corners[from]) / (corners[to] - corners[from]);
  return [[share, 0], [1, share], [share, 1], [0, share]][side];
}

/** Make an element with properties, and children that are elements or text. */
function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Write a badge with the verdict. */
function showBadge(badge, isBad) {
  badge.textContent = isBad ? "NG" : "OK";
  badge.className = isBad ? "badge ng" : "badge ok";
}

/** Copy a text; say so on the button. */
async function copyText(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 1500);
}
