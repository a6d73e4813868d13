// Zoom and pan: the layers of a picture move together inside a frame.

import { WHOLE } from "./decide.js";

const MAX_SCALE = 24; // relative to the size at which the whole picture fits
const HOLD_MS = 500; // until a touch reads the labels under it
const ZOOM_STEP = 1.25; // per button or key press
const PAN_STEP = 60; // px per arrow key
const MAX_ENLARGEMENT = 3; // of a small picture to fit the frame

/**
 * @param frame the element that clips the layers and receives pointer and key events
 * @param layers elements stacked at the frame's top left corner; a layer may show only its `piece` of the picture
 * @param on.tap(point), on.hover(point | null), on.change(); a point has u, v (0..1 in the picture) and x, y (px in the
 *   frame)
 */
export function createView(frame, layers, on) {
  const fingers = new Map(); // pointer id -> [x, y]
  let size = { width: 1, height: 1 };
  let base = { width: 1, height: 1 };
  let scale = 1;
  let left = 0;
  let top = 0;
  let travelled = 0;
  let holding = 0; // timer of a touch
  let held = false;

  function fit() {
    const room = frame.getBoundingClientRect();
    const factor = Math.min(room.width / size.width, room.height / size.height, MAX_ENLARGEMENT);
    base = { width: size.width * factor, height: size.height * factor };
    scale = Math.max(scale, leastScale());
    place();
  }

  function place() {
    left = clampEdge(left, base.width * scale, frame.clientWidth);
    top = clampEdge(top, base.height * scale, frame.clientHeight);
    for (const layer of layers) {
      const part = layer.piece ?? WHOLE;
      layer.style.width = `${base.width * part.width}px`;
      layer.style.height = `${base.height * part.height}px`;
      const x = left + part.left * base.width * scale;
      const y = top + part.top * base.height * scale;
      layer.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
    }
    frame.classList.toggle("zoomed", scale > 1);
    on.change();
  }

  /** The scale at which a pixel of the picture is a pixel of the screen. */
  function pixelScale() {
    return size.width / base.width / devicePixelRatio;
  }

  function leastScale() {
    return Math.min(1, pixelScale());
  }

  function zoom(factor, x = frame.clientWidth / 2, y = frame.clientHeight / 2) {
    const next = Math.min(Math.max(MAX_SCALE, pixelScale()), Math.max(leastScale(), scale * factor));
    left = x - ((x - left) * next) / scale;
    top = y - ((y - top) * next) / scale;
    scale = next;
    place();
  }

  function pan(dx, dy) {
    left += dx;
    top += dy;
    place();
  }

  function reset() {
    scale = 1;
    place();
  }

  function toPixels() {
    zoom(pixelScale() / scale);
  }

  function pointAt(x, y) {
    const u = (x - left) / (base.width * scale);
    const v = (y - top) / (base.height * scale);
    return u >= 0 && u < 1 && v >= 0 && v < 1 ? { u, v, x, y } : null;
  }

  function inFrame(event) {
    const box = frame.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  frame.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), ...inFrame(event));
  }, { passive: false });

  frame.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    if (!fingers.size) travelled = 0;
    const place = inFrame(event);
    fingers.set(event.pointerId, place);
    frame.setPointerCapture(event.pointerId);
    clearTimeout(holding);
    held = false;
    if (event.pointerType !== "touch") return;
    on.hover(null);
    holding = setTimeout(() => {
      held = fingers.size === 1 && travelled <= 4;
      if (held) on.hover(pointAt(...place));
    }, HOLD_MS);
  });

  frame.addEventListener("pointermove", (event) => {
    const [x, y] = inFrame(event);
    const before = fingers.get(event.pointerId);
    if (!before || held) return on.hover(pointAt(x, y));
    const others = [...fingers].filter(([id]) => id !== event.pointerId);
    travelled += Math.hypot(x - before[0], y - before[1]);
    if (others.length) {
      const [ox, oy] = others[0][1];
      zoom(Math.hypot(x - ox, y - oy) / Math.max(1, Math.hypot(before[0] - ox, before[1] - oy)), ox, oy);
    } else if (travelled > 4) {
      pan(x - before[0], y - before[1]);
    }
    fingers.set(event.pointerId, [x, y]);
  });

  frame.addEventListener("pointerup", (event) => {
    clearTimeout(holding);
    if (!fingers.delete(event.pointerId) || fingers.size || travelled > 4 || held) return;
    const point = pointAt(...inFrame(event));
    if (point) on.tap(point);
  });
  frame.addEventListener("pointercancel", (event) => {
    clearTimeout(holding);
    fingers.delete(event.pointerId);
  });
  frame.addEventListener("pointerleave", () => held || on.hover(null)); // what a touch has read stays
  frame.addEventListener("contextmenu", (event) => held && event.preventDefault());
  frame.addEventListener("touchmove", (event) => held && event.preventDefault(), { passive: false });

  const keys = {
    "+": () => zoom(ZOOM_STEP),
    "=": () => zoom(ZOOM_STEP),
    "-": () => zoom(1 / ZOOM_STEP),
    0: reset,
    1: toPixels,
    ArrowLeft: () => pan(PAN_STEP, 0),
    ArrowRight: () => pan(-PAN_STEP, 0),
    ArrowUp: () => pan(0, PAN_STEP),
    ArrowDown: () => pan(0, -PAN_STEP),
  };
  frame.addEventListener("keydown", (event) => {
    if (event.target !== frame || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey && event.key.startsWith("Arrow")) return;
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  new ResizeObserver(fit).observe(frame);

  return {
    zoomIn: () => zoom(ZOOM_STEP),
    zoomOut: () => zoom(1 / ZOOM_STEP),
    /** Show the whole picture, or if it is shown already, its pixels as those of the screen. */
    reset: () => (scale === 1 ? toPixels() : reset()),
    /** Pixels of the screen per pixel of the picture. */
    get ratio() {
      return scale / pixelScale();
    },
    /** Longest side of the picture on screen, px. */
    get extent() {
      return Math.max(base.width, base.height) * scale;
    },
    /** The part of the picture that is inside the frame, in fractions of it, and its size in pixels of the screen. */
    visible() {
      const [w, h] = [base.width * scale, base.height * scale];
      const part = { left: Math.max(0, -left / w), top: Math.max(0, -top / h) };
      part.width = Math.min(1 - part.left, (frame.clientWidth - Math.max(0, left)) / w);
      part.height = Math.min(1 - part.top, (frame.clientHeight - Math.max(0, top)) / h);
      const pixels = (fraction, length) => Math.max(1, Math.round(fraction * length * devicePixelRatio));
      return { part, width: pixels(part.width, w), height: pixels(part.height, h) };
    },
    place,
    /** Show the whole of a picture of another size. */
    show(next) {
      size = next;
      scale = 1;
      fit();
    },
    /** Convert (u, v) of the picture to px in the frame. */
    locate: (u, v) => ({ u, v, x: left + u * base.width * scale, y: top + v * base.height * scale }),
  };
}

/** Clamp an edge: the picture is centred if it is smaller than the room, and leaves no gap if it is larger. */
function clampEdge(edge, length, room) {
  return length <= room ? (room - length) / 2 : Math.min(0, Math.max(room - length, edge));
}
