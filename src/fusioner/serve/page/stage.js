// The picture with its masks, and the labels at the point under the pointer or chosen by keyboard.

import { countPixels, decide, findOutscoring, findRegions, floorOf, probabilities, probability, restrict, WHOLE } from "./decide.js";
import { paint, paintProbability } from "./paint.js";
import { createView } from "./view.js";
import { percent } from "./words.js";

const SCREEN_SIDE = 1200; // longest side of the label map on screen, px
const SMALL_SIDE = 288; // the same of a thumbnail
const SETTLE_MS = 100; // after zooming, before the masks are painted anew at the screen's resolution
const BARS = 4;
const STRIDE = 0.02; // fraction of the picture by which a key moves the point

const $ = (id) => document.getElementById(id);

/**
 * @param settings { threshold, background, opacity, outlines }, read on every draw
 * @param on.isolate(label | null, point of its region | null), on.decided(picture), on.say(text)
 */
export function createStage(settings, on) {
  const [frame, photo, overlay, probe, split] = ["frame", "photo", "overlay", "probe", "split"].map($);
  let picture = null;
  let spot = null; // the point whose labels are shown
  let zooming = 0; // timer
  let sized = false; // whether the size of the picture is known
  const view = createView(frame, [photo, overlay], {
    tap: (point) => isolateAt(point),
    hover: (point) => read(point),
    change: moved,
  });

  function show(next) {
    const fresh = picture !== next || !sized;
    if (picture !== next) {
      picture = next;
      photo.src = picture.url;
      photo.alt = picture.name;
      photo.hidden = !picture.visible;
      Object.assign(overlay, { width: 1, height: 1, piece: undefined }); // without the masks of the picture before
      read(null);
    }
    sized = picture.size !== null; // unknown until the server has read a picture that the browser cannot
    if (fresh && sized) view.show(picture.size);
    draw();
  }

  /** Recompute the label map, then paint. */
  function draw() {
    if (!picture?.size) return;
    const { map, pixels } = decided(picture, settings, within(picture.size, SCREEN_SIDE));
    picture.map = map;
    picture.shares = new Map(picture.shown.map((label, index) => [label, pixels[index + 1] / map.data.length]));
    picture.regions = settings.instances ? findRegions(map.data, map) : null;
    picture.reasons = reasons(picture, settings);
    repaint();
    on.decided(picture);
  }

  /** Paint the masks: the whole map, or if the picture is enlarged, the part inside the frame at the screen's resolution. */
  function repaint() {
    if (!picture?.map) return;
    const enlarged = view.extent > SCREEN_SIDE;
    const { part, ...size } = enlarged ? view.visible() : { part: WHOLE };
    const map = enlarged ? decided(picture, settings, size, part).map : picture.map;
    const thickness = enlarged ? devicePixelRatio : Math.max(map.width, map.height) / view.extent;
    paintMap(overlay, picture, settings, map, Math.max(1, Math.round(thickness)), part);
    overlay.piece = part;
    overlay.dataset.view = viewKey();
    view.place();
    if (spot) read(spot);
  }

  function moved() {
    $("zoom-value").textContent = `${Math.round(100 * view.ratio)} %`;
    clearTimeout(zooming);
    if (viewKey() !== overlay.dataset.view) zooming = setTimeout(repaint, SETTLE_MS);
  }

  /** Changes when the masks must be painted anew. */
  function viewKey() {
    return JSON.stringify([view.extent, view.extent > SCREEN_SIDE && view.visible()]);
  }

  function isolateAt(point) {
    const label = labelAt(point);
    const region = regionAt(picture, point);
    const again = label === picture.isolated && region === regionAt(picture, picture.spot);
    on.isolate(again ? null : label, again || !region ? null : point);
  }

  function labelAt({ u, v }) {
    const { data, width, height } = picture.map;
    return picture.shown[data[Math.floor(v * height) * width + Math.floor(u * width)] - 1] ?? null;
  }

  function likeliest({ u, v }) {
    return picture.shown
      .map((label) => ({ label, share: probability(label.plane, picture.grid, u, v) }))
      .sort((a, b) => b.share - a.share)
      .slice(0, BARS);
  }

  /** Show the label at the point, and the most probable labels with bars. */
  function read(point) {
    spot = point;
    probe.hidden = !point || !picture?.shown.length;
    if (probe.hidden) return;
    const label = labelAt(point);
    const title = document.createElement("b");
    const { rank, count } = picture.regions?.regions[regionAt(picture, point)] ?? {};
    title.textContent = (label?.word ?? "background") + (rank ? `, region ${rank} of ${count}` : "");
    probe.replaceChildren(title, ...likeliest(point).map(bar));
    probe.style.setProperty("--threshold", settings.threshold);
    const room = frame.getBoundingClientRect();
    const { width, height } = probe.getBoundingClientRect();
    const x = point.x + 18 + width > room.width ? point.x - 18 - width : point.x + 18;
    const below = matchMedia("(pointer: coarse)").matches ? point.y - 48 - height : point.y + 18; // not under a finger
    const y = Math.min(Math.max(8, below), room.height - height - 8);
    probe.style.transform = `translate(${Math.max(8, x)}px, ${y}px)`;
  }

  function step(key) {
    const { u, v } = spot ?? { u: 0.5, v: 0.5 };
    const [du, dv] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    const inside = (value) => Math.min(0.999, Math.max(0, value));
    read(view.locate(inside(u + du * STRIDE), inside(v + dv * STRIDE)));
    const first = labelAt(spot)?.word ?? "background";
    on.say([first, ...likeliest(spot).map(({ label, share }) => `${label.word} ${percent(share)}`)].join(", "));
  }

  frame.addEventListener("keydown", (event) => {
    if (event.shiftKey && event.key.startsWith("Arrow") && picture?.map) {
      event.preventDefault();
      step(event.key);
    } else if (event.key === "Enter" && spot) {
      isolateAt(spot);
    }
  });
  frame.addEventListener("blur", () => read(null));
  for (const [id, act] of [["zoom-in", view.zoomIn], ["zoom-out", view.zoomOut], ["zoom-reset", view.reset]]) {
    $(id).addEventListener("click", act);
  }

  function compare() {
    split.hidden = !$("compare").checked;
    $("masks").style.clipPath = split.hidden ? "" : `inset(0 0 0 ${split.value}%)`;
  }
  split.addEventListener("input", compare);
  $("compare").addEventListener("change", compare);

  /** The photo, if the browser can show it, and the masks of the whole picture. */
  function layers() {
    const masks = document.createElement("canvas");
    paintMap(masks, picture, settings, picture.map, 1);
    return picture.visible ? [photo, masks] : [masks];
  }
  return { show, draw, repaint, layers, photo };
}

/** Draw the picture with its masks as displayed, at its own size -> canvas. */
export function asSeen(picture, settings, photo) {
  const { size } = picture;
  const masks = document.createElement("canvas");
  const thickness = Math.max(1, Math.round(Math.max(size.width, size.height) / SCREEN_SIDE)); // as on screen
  paintMap(masks, picture, settings, decided(picture, settings, size).map, thickness);
  const page = Object.assign(document.createElement("canvas"), size);
  const context = page.getContext("2d");
  if (picture.visible) context.drawImage(photo, 0, 0, size.width, size.height);
  context.drawImage(masks, 0, 0);
  return page;
}

/** Draw the picture at its own size, transparent where it has none of the labels shown -> canvas. */
export function cutOut(picture, settings, photo) {
  const { size } = picture;
  const canvas = Object.assign(document.createElement("canvas"), size);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(photo, 0, 0, size.width, size.height);
  const pixels = context.getImageData(0, 0, size.width, size.height);
  const region = isolatedRegion(picture);
  const shown = picture.shown.includes(picture.isolated) && !region ? [picture.isolated] : picture.shown;
  const { map } = decided({ ...picture, shown }, settings, size);
  const { data } = region ? restrict(map, WHOLE, picture.regions, region) : map;
  for (let i = 0; i < data.length; i++) if (!data[i]) pixels.data[4 * i + 3] = 0;
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Draw the masks for a thumbnail -> canvas. */
export function smallMasks(picture, settings) {
  const canvas = document.createElement("canvas");
  paintMap(canvas, picture, settings, decided(picture, settings, within(picture.size, SMALL_SIDE)).map, 1);
  return canvas;
}

function decided(picture, { threshold, background }, size, part = WHOLE) {
  const planes = picture.shown.map((label) => label.plane);
  const data = decide(planes, picture.grid ?? { width: 1, height: 1 }, size, floorOf(threshold, background), part);
  return { map: { ...size, data }, pixels: countPixels(data, planes.length) };
}

function paintMap(canvas, picture, { opacity, outlines }, map, thickness, part = WHOLE) {
  const { isolated, grid, shown } = picture;
  const region = isolatedRegion(picture);
  if (region) map = restrict(map, part, picture.regions, region);
  if (shown.includes(isolated) && !region) {
    paintProbability(canvas, probabilities(isolated.plane, grid, map, part), map, isolated.style.colour, { opacity });
  } else {
    paint(canvas, map.data, map, shown.map((label) => label.style.colour), { opacity, outlines }, thickness);
  }
}

/** Return the index of the region at a point, 0 if there is none or regions are not apart. */
function regionAt({ regions }, point) {
  if (!regions || !point) return 0;
  const id = regions.ids[Math.floor(point.v * regions.height) * regions.width + Math.floor(point.u * regions.width)];
  return regions.regions[id].rank ? id : 0;
}

/** Return the index of the only region shown, 0 if there is none, as after another decision without it. */
export function isolatedRegion(picture) {
  const id = regionAt(picture, picture.spot);
  return id && picture.shown[picture.regions.regions[id].number - 1] === picture.isolated ? id : 0;
}

/** Return how many regions the labels have if regions are apart, and why labels have no pixels -> Map of texts. */
function reasons({ shown, shares, regions, grid }, { threshold }) {
  const texts = new Map();
  for (const { number, rank, count } of regions?.regions ?? []) {
    if (rank === 1) texts.set(shown[number - 1], count === 1 ? "1 region" : `${count} regions`);
  }
  const missing = shown.flatMap((label, index) => (shares.get(label) ? [] : [index]));
  const likely = missing.filter((index) => shown[index].peak > threshold);
  const winners = findOutscoring(shown.map((label) => label.plane), grid, likely, floorOf(threshold, true));
  for (const index of missing) {
    const winner = shown[winners.get(index)];
    texts.set(shown[index], winner ? `${winner.word} is likelier` : `at most ${percent(shown[index].peak)}`);
  }
  return texts;
}

/** Scale a size to a longest side of `side`. */
function within({ width, height }, side) {
  const factor = side / Math.max(width, height);
  return { width: Math.max(1, Math.round(width * factor)), height: Math.max(1, Math.round(height * factor)) };
}

function bar({ label, share }) {
  const row = document.createElement("p");
  const name = Object.assign(document.createElement("em"), { textContent: label.word });
  row.append(document.createElement("i"), name, document.createElement("span"));
  row.lastChild.textContent = percent(share);
  row.style.setProperty("--colour", label.style.colour);
  row.style.setProperty("--share", share);
  return row;
}
