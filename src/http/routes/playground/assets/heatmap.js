// Draws over the picture where the model looked. The picture turns grey below the colours, so they are legible on any picture.

import { byId, percent } from "./dom.js";

/** The colours of the map viridis at 0, 1/4, ... 1. They differ in lightness, so they can be told apart without colour vision. */
const RAMP = [
  [68, 1, 84],
  [59, 82, 139],
  [33, 145, 140],
  [94, 201, 98],
  [253, 231, 37],
];

/**
 * Returns the colour of a value from 0 to 1.
 * @param {number} value
 * @returns {[number, number, number]}
 */
function colour(value) {
  const place = Math.min(Math.max(value, 0), 1) * (RAMP.length - 1);
  const low = RAMP[Math.floor(place)] ?? [0, 0, 0];
  const high = RAMP[Math.min(Math.floor(place) + 1, RAMP.length - 1)] ?? low;
  const part = place - Math.floor(place);
  const mix = (/** @type {number} */ channel) => Math.round((low[channel] ?? 0) + ((high[channel] ?? 0) - (low[channel] ?? 0)) * part);
  return [mix(0), mix(1), mix(2)];
}

/** Counts the maps that were asked for, so that a late picture does not draw an old one. */
let asked = 0;

/**
 * Shows the weights of a word over the picture that is shown.
 * @param {[number, number]} grid rows and columns
 * @param {number[]} weights one for each patch, row by row
 * @param {string} word
 */
export async function showHeat([rows, columns], weights, word) {
  asked += 1;
  const own = asked;
  const canvas = byId("heat", HTMLCanvasElement);
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const context = small.getContext("2d");
  const large = canvas.getContext("2d");
  if (!context || !large) return;
  const most = Math.max(...weights, 1e-12);
  const pixels = context.createImageData(columns, rows);
  weights.forEach((weight, index) => {
    const part = weight / most;
    pixels.data.set([...colour(part), Math.round(110 + 120 * part)], index * 4);
  });
  context.putImageData(pixels, 0, 0);
  const image = byId("shown", HTMLImageElement);
  try {
    if (!image.complete) await image.decode();
  } catch {
    // A format that this browser cannot show.
  }
  if (own !== asked || image.naturalWidth === 0) return;
  canvas.width = Math.max(image.clientWidth, 1);
  canvas.height = Math.max(image.clientHeight, 1);
  large.filter = "grayscale(1)";
  large.drawImage(image, 0, 0, canvas.width, canvas.height);
  large.filter = "none";
  large.imageSmoothingEnabled = true;
  large.imageSmoothingQuality = "high";
  large.drawImage(small, 0, 0, canvas.width, canvas.height);
  byId("scale", HTMLElement).classList.remove("unseen");
  byId("scale-low", HTMLElement).textContent = "0 %";
  byId("scale-high", HTMLElement).textContent = percent(most);
  byId("scale-what", HTMLElement).textContent = `share of the attention per patch, for “${word}”`;
}

export function hideHeat() {
  asked += 1;
  const canvas = byId("heat", HTMLCanvasElement);
  canvas.getContext("2d")?.clearRect(0, 0, canvas.width, canvas.height);
  byId("scale", HTMLElement).classList.add("unseen");
}
