// The session's pictures as thumbnails with their masks.

const SIDE = 144; // px, shown at half of that

/** `open(picture)` is called when a thumbnail is clicked. */
export function createThumbnails(list, open) {
  const items = new Map(); // picture -> <li>

  function makeItem(picture) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.append(document.createElement("canvas"));
    button.addEventListener("click", () => open(picture));
    item.append(button);
    return item;
  }

  return {
    show(pictures, current) {
      for (const [picture, item] of items) {
        if (pictures.includes(picture)) continue;
        item.remove();
        items.delete(picture);
      }
      for (const [place, picture] of pictures.entries()) {
        if (!items.has(picture)) items.set(picture, makeItem(picture));
        const item = items.get(picture);
        if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null);
        const words = picture.labels.map((label) => label.word).join(", ");
        item.firstChild.setAttribute("aria-label", words ? `${picture.name}: ${words}` : picture.name);
        item.firstChild.title = item.firstChild.getAttribute("aria-label");
        item.firstChild.setAttribute("aria-current", String(picture === current));
      }
    },
    /** Draw the picture's thumbnail from its layers, cropped to a square. */
    draw(picture, layers) {
      const canvas = items.get(picture)?.querySelector("canvas");
      if (!canvas) return;
      Object.assign(canvas, { width: SIDE, height: SIDE });
      const { width, height } = picture.size;
      const factor = SIDE / Math.min(width, height);
      const [w, h] = [width * factor, height * factor];
      for (const layer of layers) canvas.getContext("2d").drawImage(layer, (SIDE - w) / 2, (SIDE - h) / 2, w, h);
    },
  };
}
