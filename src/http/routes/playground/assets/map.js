// A map of vectors: the two directions in which they differ most (principal components), computed in the page.

import { h, svg } from "./dom.js";
import { cosineBar, table } from "./result.js";

/** @typedef {{name: string, url: string | null, vector: number[]}} Point */

const WIDTH = 640;
const HEIGHT = 420;
const MARGIN = 48;

/**
 * @param {number[]} a
 * @param {number[]} b
 */
function dot(a, b) {
  return a.reduce((sum, value, index) => sum + value * (b[index] ?? 0), 0);
}

/**
 * Returns two coordinates of each vector. The principal components of n vectors are found in the n x n matrix of their dot
 * products, by power iteration.
 * @param {number[][]} vectors
 * @returns {[number, number][]}
 */
export function coordinates(vectors) {
  const mean = (vectors[0] ?? []).map((_, index) => vectors.reduce((sum, vector) => sum + (vector[index] ?? 0), 0) / vectors.length);
  const centred = vectors.map((vector) => vector.map((value, index) => value - (mean[index] ?? 0)));
  const gram = centred.map((a) => centred.map((b) => dot(a, b)));
  const axes = [0, 1].map((axis) => {
    let found = gram.map((_, index) => Math.cos(1 + index * (axis + 1)));
    let value = 0;
    for (let round = 0; round < 200; round += 1) {
      const next = gram.map((row) => dot(row, found));
      value = Math.hypot(...next);
      if (value < 1e-12) return gram.map(() => 0);
      found = next.map((one) => one / value);
    }
    // Without this axis, the next iteration finds the second.
    gram.forEach((row, i) => row.forEach((_, j) => (row[j] = (row[j] ?? 0) - value * (found[i] ?? 0) * (found[j] ?? 0))));
    return found.map((one) => one * Math.sqrt(value));
  });
  return vectors.map((_, index) => [axes[0]?.[index] ?? 0, axes[1]?.[index] ?? 0]);
}

/**
 * Draws the map, with a table of the nearest neighbours for those who cannot see it.
 * @param {Point[]} points
 */
export function map(points) {
  const places = coordinates(points.map(({ vector }) => vector));
  const scale = (/** @type {number} */ axis, /** @type {number} */ size) => {
    const values = places.map((place) => place[axis] ?? 0);
    const low = Math.min(...values);
    const span = Math.max(...values) - low || 1;
    return (/** @type {number} */ value) => MARGIN + ((value - low) / span) * (size - 2 * MARGIN);
  };
  const [x, y] = [scale(0, WIDTH), scale(1, HEIGHT)];
  const drawing = svg("svg", { class: "map", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": "Map of the pictures and texts; the table below has the same distances" });
  // Texts come last, so that no picture covers them.
  const order = points.map((point, index) => ({ point, place: places[index] ?? [0, 0] })).sort((a, b) => Number(!a.point.url) - Number(!b.point.url));
  for (const { point, place } of order) {
    const [left, top] = [x(place[0]), y(place[1])];
    if (point.url) {
      drawing.append(svg("image", { href: point.url, x: left - 22, y: top - 22, width: 44, height: 44, preserveAspectRatio: "xMidYMid slice" }, svg("title", {}, point.name)));
    } else {
      const end = left > WIDTH / 2;
      drawing.append(svg("circle", { cx: left, cy: top, r: 5 }), svg("text", { x: left + (end ? -9 : 9), y: top + 4, "text-anchor": end ? "end" : "start" }, point.name));
    }
  }
  const rows = points.map((point) => {
    const others = points.filter((other) => other !== point).map((other) => ({ other, cosine: dot(point.vector, other.vector) }));
    const nearest = others.reduce((best, one) => (one.cosine > best.cosine ? one : best));
    return [point.name, nearest.other.name, cosineBar(nearest.cosine)];
  });
  return h("div", {}, drawing, table("Nearest neighbours", ["Picture or text", "Nearest", "Cosine"], rows));
}
