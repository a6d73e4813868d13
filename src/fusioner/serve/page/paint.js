// Paint a label map as translucent colours with outlines, to be laid over the photo.

import { channels } from "./palette.js";

const INK = [12, 14, 18];
const BACKGROUND_OPACITY = 0.18; // of the dark layer over the background
const DIMMED_OPACITY = 0.72; // of the same where an isolated label has probability 0

/**
 * Paint the map on a canvas, which is resized to the map's size.
 *
 * `shades[i]` is the colour ("#rrggbb") of number i + 1; outlines are `thickness` pixels of the map wide.
 */
export function paint(canvas, map, { width, height }, shades, { opacity, outlines }, thickness) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true }); // keeps the canvas in main memory
  const picture = context.createImageData(width, height);
  const pixels = new Uint32Array(picture.data.buffer);
  const fills = new Uint32Array(shades.length + 1);
  const lines = new Uint32Array(shades.length + 1);
  fills[0] = lines[0] = shades.length ? packed(INK, BACKGROUND_OPACITY) : 0;
  shades.forEach((shade, index) => {
    fills[index + 1] = packed(channels(shade), opacity);
    lines[index + 1] = outlines ? packed(channels(shade), 1) : fills[index + 1];
  });
  for (let y = 0, i = 0; y < height; y++) {
    const up = y >= thickness ? thickness * width : 0;
    const down = y + thickness < height ? thickness * width : 0;
    for (let x = 0; x < width; x++, i++) {
      const number = map[i];
      const left = x >= thickness ? thickness : 0;
      const right = x + thickness < width ? thickness : 0;
      const inside =
        map[i - up] === number && map[i + down] === number && map[i - left] === number && map[i + right] === number;
      pixels[i] = inside ? fills[number] : lines[number];
    }
  }
  context.putImageData(picture, 0, 0);
}

/** Paint the probability of one label, given for every pixel: its colour where it is 1, a dark layer where it is 0. */
export function paintProbability(canvas, probabilities, { width, height }, shade, { opacity }) {
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const picture = context.createImageData(width, height);
  const pixels = new Uint32Array(picture.data.buffer);
  const mix = (a, b, share) => a + (b - a) * share;
  const colours = Array.from({ length: 256 }, (_, level) => {
    const rgb = channels(shade).map((value, index) => Math.round(mix(INK[index], value, level / 255)));
    return packed(rgb, mix(DIMMED_OPACITY, opacity, level / 255));
  });
  for (let i = 0; i < pixels.length; i++) pixels[i] = colours[Math.round(255 * probabilities[i])];
  context.putImageData(picture, 0, 0);
}

/** Pack RGBA into one little-endian number, the byte order of canvases. */
function packed([red, green, blue], alpha) {
  return ((Math.round(255 * alpha) << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}
