// The server's decision rule (fusioner/inference/decide.py), in the browser.
// A plane holds one label's logits, row-major on a grid of { height, width } cells.

/** A plane of the server's answer: base64 of little-endian uint16, logit = low + step * value. */
export function decodePlane(base64, low, step) {
  const text = atob(base64);
  const plane = new Float32Array(text.length / 2);
  for (let i = 0; i < plane.length; i++) {
    plane[i] = low + step * (text.charCodeAt(2 * i) | (text.charCodeAt(2 * i + 1) << 8));
  }
  return plane;
}

/** The logit above which a label beats background. */
export function floorOf(threshold, background) {
  return background ? Math.log(threshold / (1 - threshold)) : -Infinity;
}

/**
 * The label of every pixel: 0 for background, i for the i-th plane; ties go to the first, background before all.
 *
 * Logits are interpolated bilinearly with pixel centres at half coordinates (torch: align_corners=False), a row at a
 * time, which costs less than keeping whole planes at full size.
 */
export function decide(planes, grid, { width, height }, floor) {
  const map = new Uint16Array(width * height);
  const best = new Float32Array(width);
  const row = new Float32Array(grid.width);
  const columns = neighbours(grid.width, width);
  const rows = neighbours(grid.height, height);
  for (let y = 0; y < height; y++) {
    best.fill(floor);
    const above = rows.first[y] * grid.width;
    const below = rows.second[y] * grid.width;
    for (let k = 0; k < planes.length; k++) {
      blend(planes[k], above, below, rows.weight[y], row);
      takeBetter(row, columns, best, map, y * width, k + 1);
    }
  }
  return map;
}

/** Pixels of each number 0..count. */
export function countPixels(map, count) {
  const pixels = new Array(count + 1).fill(0);
  for (let i = 0; i < map.length; i++) pixels[map[i]]++;
  return pixels;
}

/** A label's probability at the point (u, v) of the picture, both 0..1. */
export function probability(plane, grid, u, v) {
  const [left, right, fx] = between(u * grid.width - 0.5, grid.width);
  const [above, below, fy] = between(v * grid.height - 0.5, grid.height);
  const at = (y) => plane[y * grid.width + left] * (1 - fx) + plane[y * grid.width + right] * fx;
  return 1 / (1 + Math.exp(-(at(above) * (1 - fy) + at(below) * fy)));
}

function takeBetter(row, { first, second, weight }, best, map, start, number) {
  for (let x = 0; x < best.length; x++) {
    const left = row[first[x]];
    const value = left + (row[second[x]] - left) * weight[x];
    if (value > best[x]) {
      best[x] = value;
      map[start + x] = number;
    }
  }
}

function blend(plane, above, below, weight, row) {
  for (let x = 0; x < row.length; x++) {
    row[x] = plane[above + x] + (plane[below + x] - plane[above + x]) * weight;
  }
}

/** For each of `count` pixels the two cells it lies between, and how far it is towards the second. */
function neighbours(cells, count) {
  const first = new Uint32Array(count);
  const second = new Uint32Array(count);
  const weight = new Float32Array(count);
  for (let i = 0; i < count; i++) [first[i], second[i], weight[i]] = between(((i + 0.5) * cells) / count - 0.5, cells);
  return { first, second, weight };
}

function between(position, cells) {
  const inside = Math.min(Math.max(position, 0), cells - 1);
  const first = Math.floor(inside);
  return [first, Math.min(first + 1, cells - 1), inside - first];
}
