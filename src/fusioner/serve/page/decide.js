// The server's decision rule (fusioner/postprocess.py), in the browser.
// A plane holds one label's logits, row-major on a grid of { height, width } cells.

export const WHOLE = { left: 0, top: 0, width: 1, height: 1 };

/** Decode one plane of the `logits` format: base64 of little-endian uint16, logit = low + step * value. */
export function decodePlane(base64, low, step) {
  const text = atob(base64);
  const plane = new Float32Array(text.length / 2);
  for (let i = 0; i < plane.length; i++) {
    plane[i] = low + step * (text.charCodeAt(2 * i) | (text.charCodeAt(2 * i + 1) << 8));
  }
  return plane;
}

/** The logit that a label must exceed to replace background. */
export function floorOf(threshold, background) {
  return background ? Math.log(threshold / (1 - threshold)) : -Infinity;
}

/**
 * Return the label of every pixel: 0 for background, i for the i-th plane; ties go to the first, background before all.
 *
 * Logits are interpolated bilinearly with pixel centres at half coordinates (torch: align_corners=False), one row at a
 * time to save memory. The pixels are those of a `part` of the picture, in fractions of it.
 */
export function decide(planes, grid, { width, height }, floor, part = WHOLE) {
  const map = new Uint16Array(width * height);
  const best = new Float32Array(width);
  const row = new Float32Array(grid.width);
  const spans = spansOf(grid.width, width, part.left, part.width);
  for (let y = 0; y < height; y++) {
    const v = part.top + ((y + 0.5) * part.height) / height;
    const [above, below, weight] = between(v * grid.height - 0.5, grid.height);
    const line = map.subarray(y * width, (y + 1) * width);
    best.fill(floor);
    for (let k = 0; k < planes.length; k++) {
      blend(planes[k], above * grid.width, below * grid.width, weight, row);
      takeBetter(row, spans, floor, best, line, k + 1);
    }
  }
  return map;
}

/** Count the pixels of each number 0..count. */
export function countPixels(map, count) {
  const pixels = new Array(count + 1).fill(0);
  for (let i = 0; i < map.length; i++) pixels[map[i]]++;
  return pixels;
}

/** Return a label's probability at the point (u, v) of the picture, both 0..1. */
export function probability(plane, grid, u, v) {
  const [left, right, fx] = between(u * grid.width - 0.5, grid.width);
  const [above, below, fy] = between(v * grid.height - 0.5, grid.height);
  const at = (y) => plane[y * grid.width + left] * (1 - fx) + plane[y * grid.width + right] * fx;
  return 1 / (1 + Math.exp(-(at(above) * (1 - fy) + at(below) * fy)));
}

/** Return a label's probability at every pixel of a part of the picture. */
export function probabilities(plane, grid, { width, height }, part = WHOLE) {
  const values = new Float32Array(width * height);
  const columns = Array.from({ length: width }, (_, x) => {
    const u = part.left + ((x + 0.5) * part.width) / width;
    return between(u * grid.width - 0.5, grid.width);
  });
  const row = new Float32Array(grid.width);
  for (let y = 0, i = 0; y < height; y++) {
    const v = part.top + ((y + 0.5) * part.height) / height;
    const [above, below, weight] = between(v * grid.height - 0.5, grid.height);
    blend(plane, above * grid.width, below * grid.width, weight, row);
    for (const [left, right, share] of columns) {
      values[i++] = 1 / (1 + Math.exp(-(row[left] + (row[right] - row[left]) * share)));
    }
  }
  return values;
}

/** Write `number` where the interpolated values of a row exceed the best so far. */
function takeBetter(row, { starts, weights }, floor, best, line, number) {
  for (let cell = 0; cell < row.length; cell++) {
    const left = row[cell];
    const right = row[Math.min(cell + 1, row.length - 1)];
    if (left <= floor && right <= floor) continue; // interpolated values cannot exceed it either
    for (let x = starts[cell]; x < starts[cell + 1]; x++) {
      const value = left + (right - left) * weights[x];
      if (value > best[x]) {
        best[x] = value;
        line[x] = number;
      }
    }
  }
}

function blend(plane, above, below, weight, row) {
  for (let x = 0; x < row.length; x++) {
    row[x] = plane[above + x] + (plane[below + x] - plane[above + x]) * weight;
  }
}

/** For each cell the first of the `count` pixels between it and the next, and for each pixel its weight between them. */
function spansOf(cells, count, start, length) {
  const starts = new Uint32Array(cells + 1).fill(count);
  const weights = new Float32Array(count);
  for (let x = count - 1; x >= 0; x--) {
    const [first, , weight] = between((start + ((x + 0.5) * length) / count) * cells - 0.5, cells);
    starts.fill(x, 0, first + 1);
    weights[x] = weight;
  }
  return { starts, weights };
}

function between(position, cells) {
  const inside = Math.min(Math.max(position, 0), cells - 1);
  const first = Math.floor(inside);
  return [first, Math.min(first + 1, cells - 1), inside - first];
}
