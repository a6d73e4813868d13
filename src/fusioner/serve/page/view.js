// Zoom and pan: the layers of a picture move together inside a frame.

const MAX_SCALE = 24; // relative to the size at which the whole picture fits
const ZOOM_STEP = 1.25; // per button or key press
const PAN_STEP = 60; // px per arrow key
const MAX_ENLARGEMENT = 3; // of a small picture to fit the frame

/**
 * @param frame the element that clips the layers and receives pointer and key events
 * @param layers elements stacked at the frame's top left corner
 * @param on.tap(point), on.hover(point | null), on.change(scale); a point has u, v (0..1 in the picture) and x, y (px
 *   in the frame)
 */
export function createView(frame, layers, on) {
  const fingers = new Map(); // pointer id -> [x, y]
  let size = { width: 1, height: 1 };
  let base = { width: 1, height: 1 };
  let scale = 1;
  let left = 0;
  let top = 0;
  let travelled = 0;

  function fit() {
    const room = frame.getBoundingClientRect();
    const factor = Math.min(room.width / size.width, room.height / size.height, MAX_ENLARGEMENT);
    base = { width: size.width * factor, height: size.height * factor };
    for (const layer of layers) {
      layer.style.width = `${base.width}px`;
      layer.style.height = `${base.height}px`;
    }
    place();
  }

  function place() {
    left = clampEdge(left, base.width * scale, frame.clientWidth);
    top = clampEdge(top, base.height * scale, frame.clientHeight);
    for (const layer of layers) layer.style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
    frame.classList.toggle("zoomed", scale > 1);
    on.change(scale);
  }

  function zoom(factor, x = frame.clientWidth / 2, y = frame.clientHeight / 2) {
    const next = Math.min(MAX_SCALE, Math.max(1, scale * factor));
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
    fingers.set(event.pointerId, inFrame(event));
    frame.setPointerCapture(event.pointerId);
  });

  frame.addEventListener("pointermove", (event) => {
    const [x, y] = inFrame(event);
    const before = fingers.get(event.pointerId);
    if (!before) return on.hover(pointAt(x, y));
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
    if (!fingers.delete(event.pointerId) || fingers.size || travelled > 4) return;
    const point = pointAt(...inFrame(event));
    if (point) on.tap(point);
  });
  frame.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
  frame.addEventListener("pointerleave", () => on.hover(null));

  const keys = {
    "+": () => zoom(ZOOM_STEP),
    "=": () => zoom(ZOOM_STEP),
    "-": () => zoom(1 / ZOOM_STEP),
    0: reset,
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
    reset,
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
