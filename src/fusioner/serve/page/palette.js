// Colours of labels: the first ten are those of fusioner/visualization.py, chosen for colour-blind people too.

const FIRST = [
  "#0f4fee", "#e78a00", "#0cf6f3", "#ff2f66", "#acd708", "#a35bb7", "#ac3512", "#00a89d", "#e498ed", "#e4f472",
];
const GOLDEN_ANGLE = 360 * (1 - 2 / (1 + Math.sqrt(5)));
const LIGHTNESS = [0.72, 0.56, 0.84];

/** Return the colour of an index (0, 1, ...) as "#rrggbb". */
export function colour(index) {
  if (index < FIRST.length) return FIRST[index];
  const turn = index - FIRST.length;
  const hue = 0.5 * (180 / Math.PI) + turn * GOLDEN_ANGLE;
  return asHex(`oklch(${LIGHTNESS[turn % LIGHTNESS.length]} 0.16 ${hue})`);
}

/** Return the first colour that is not in `taken`. */
export function freeColour(taken) {
  let index = 0;
  while (taken.includes(colour(index))) index++;
  return colour(index);
}

/** Convert "#rrggbb" to [red, green, blue], 0..255. */
export function channels(hex) {
  return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
}

function asHex(css) {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  context.fillStyle = css;
  context.fillRect(0, 0, 1, 1);
  const bytes = context.getImageData(0, 0, 1, 1).data;
  return "#" + [...bytes.slice(0, 3)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
