// One button a kind of file: most are made by the server, "as seen" here.

import { ApiError } from "./api.js";
import { capital, stem } from "./words.js";

const NAMES = {
  overlay: ["Overlay", "The picture with masks and a legend, PNG"],
  mask: ["Mask", "Label numbers as an indexed PNG, 0 is background"],
  json: ["JSON", "Everything as plain values, masks as run lengths"],
  coco: ["COCO", "COCO annotations, run lengths and polygons"],
  labelme: ["LabelMe", "Polygons for LabelMe"],
  yolo: ["YOLO", "Polygons as YOLO segmentation text"],
  cvat: ["CVAT", "CVAT for images, XML"],
  geojson: ["GeoJSON", "Polygons in pixels"],
  npz: ["NumPy", "Label map and probabilities, NPZ"],
};

/**
 * Add a button for every kind in `formats` after the one for the picture as seen.
 *
 * @param make(kind) -> promise of { blob, name }; its errors are handed to `complain`
 */
export function createDownloads(home, formats, make, complain) {
  for (const kind of Object.keys(formats).filter((kind) => kind !== "logits")) {
    const [name, title] = NAMES[kind] ?? [kind, formats[kind]];
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name, title });
    button.className = "button";
    button.dataset.kind = kind;
    home.append(button);
  }
  home.addEventListener("click", async (event) => {
    const button = event.target.closest("button");
    if (!button || button.ariaBusy === "true") return;
    button.ariaBusy = "true";
    complain("");
    try {
      const { blob, name } = await make(button.dataset.kind);
      save(blob, name);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      complain(capital(error.message));
    } finally {
      button.ariaBusy = "false";
    }
  });
}

/** What a file is called when the server does not say. */
export function fallbackName(picture, kind) {
  return `${stem(picture.name)}.${kind}`;
}

function save(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
