// The server's decision rule (fusioner/postprocess.py), in the browser.
// A plane holds one label's logits, row-major on a grid of { height, width } cells.

const MIN_REGION = 5e-4; // fraction of the picture, as fusioner/regions.py

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

/**
 * Return for planes (indices) that exceed the floor somewhere but win no pixel the index of the plane that wins most of
 * these cells -> Map, as `find_outscoring` of the server.
 */
export function findOutscoring(planes, grid, missing, floor) {
  const pairs = new Map();
  const winners = missing.length ? decide(planes, grid, grid, floor) : null;
  for (const index of missing) {
    const wins = new Array(planes.length).fill(0);
    planes[index].forEach((value, cell) => value > floor && winners[cell] && wins[winners[cell] - 1]++);
    wins[index] = 0;
    const most = Math.max(...wins);
    if (most) pairs.set(index, wins.indexOf(most));
  }
  return pairs;
}

/**
 * Find the 4-connected regions of a label map -> { ids, regions, width, height }.
 *
 * `ids` holds for every pixel the index of its region, and `regions` { number, pixels, rank, count }: rank 1 is the
 * largest of the `count` regions of its number; rank 0 are those below `MIN_REGION`, except the largest.
 */
export function findRegions(map, { width, height }) {
  const ids = new Uint32Array(map.length);
  const regions = [{ number: 0, pixels: 0, rank: 0, count: 0 }];
  const stack = [];
  const visit = (place, region) => {
    if (ids[place] || map[place] !== region.number) return;
    ids[place] = regions.length;
    stack.push(place);
  };
  for (let start = 0; start < map.length; start++) {
    if (!map[start] || ids[start]) continue;
    const region = { number: map[start], pixels: 0, rank: 0, count: 0 };
    visit(start, region);
    while (stack.length) {
      const place = stack.pop();
      const x = place % width;
      region.pixels++;
      if (x > 0) visit(place - 1, region);
      if (x < width - 1) visit(place + 1, region);
      if (place >= width) visit(place - width, region);
      if (place < map.length - width) visit(place + width, region);
    }
    regions.push(region);
  }
  const sorted = regions.slice(1).sort((a, b) => b.pixels - a.pixels);
  for (const number of new Set(sorted.map((region) => region.number))) {
    const own = sorted.filter((region) => region.number === number);
    const kept = own.filter((region, index) => !index || region.pixels >= MIN_REGION * map.length);
    kept.forEach((region, index) => Object.assign(region, { rank: index + 1, count: kept.length }));
  }
  return { ids, regions, width, height };
}

/** Return a part of a label map, which may be finer than the one of the regions, without all but one region. */
export function restrict(map, part, { ids, regions, width, height }, id) {
  const data = new Uint16Array(map.data.length);
  const near = (x, y) => x >= 0 && x < width && y >= 0 && y < height && ids[y * width + x] === id;
  for (let y = 0, i = 0; y < map.height; y++) {
    const row = Math.floor((part.top + ((y + 0.5) / map.height) * part.height) * height);
    for (let x = 0; x < map.width; x++, i++) {
      if (map.data[i] !== regions[id].number) continue;
      const column = Math.floor((part.left + ((x + 0.5) / map.width) * part.width) * width);
      let inside = near(column, row);
      for (let turn = 0; turn < 9 && !inside; turn++) inside = near(column + (turn % 3) - 1, row + Math.floor(turn / 3) - 1);
      if (inside) data[i] = map.data[i];
    }
  }
  return { ...map, data };
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
