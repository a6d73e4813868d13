// One download button per output format: the server writes the files, except for the picture as seen.

import { ApiError } from "./api.js";
import { capital } from "./words.js";

const SPACING_MS = 120; // Chromium silently drops the eleventh download within a second
let nextStart = 0; // of a download, in ms of performance.now()

const NAMES = {
  overlay: ["Overlay", "The picture with coloured masks and a legend, PNG"],
  mask: ["Mask", "Label numbers as an indexed PNG, 0 is background"],
  binary: ["PNGs", "A black and white PNG per label, ZIP"],
  json: ["JSON", "All values, masks as run lengths"],
  coco: ["COCO", "COCO annotations, run lengths and polygons"],
  labelme: ["LabelMe", "Polygons to edit in LabelMe, beside the picture"],
  yolo: ["YOLO", "Polygons as YOLO segmentation text, and the names of their classes"],
  cvat: ["CVAT", "CVAT for images, XML"],
  geojson: ["GeoJSON", "Polygons in pixels"],
  npz: ["NumPy", "Label map and probabilities, NPZ"],
};

/**
 * Add a button for every one of the `formats` after the one for the picture as seen.
 *
 * @param make(format) -> promise of { blob, name }; its errors are passed to `complain`
 */
export function createDownloads(home, formats, make, complain) {
  for (const format of Object.keys(formats).filter((format) => format !== "logits")) {
    const [name, title] = NAMES[format] ?? [format, formats[format]];
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name, title });
    button.className = "button";
    button.dataset.format = format;
    home.append(button);
  }
  home.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (!button || button.ariaBusy === "true") return;
    button.ariaBusy = "true";
    complain("");
    try {
      const { blob, name } = await make(button.dataset.format);
      await save(blob, name);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      complain(capital(error.message));
    } finally {
      button.ariaBusy = "false";
    }
  });
}

/** Save a blob as a file. */
export async function save(blob, name) {
  const now = performance.now();
  const start = Math.max(now, nextStart);
  nextStart = start + SPACING_MS;
  await new Promise((resume) => setTimeout(resume, start - now));
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
