// The list of labels: one row each, with colour, name, share, hide and remove.

import { percent } from "./words.js";

const MANY = 8; // labels; of more, those not found are folded behind a button

/**
 * @param list the <ul>
 * @param template contains a row
 * @param on.decide() the label map must be recomputed, on.paint() only repainted; on.remove(label), on.isolate(label)
 */
export function createLabelList(list, template, on) {
  const rows = new Map(); // label -> <li>
  const fold = document.createElement("li");
  fold.className = "fold";
  fold.innerHTML = '<button type="button" class="link" aria-expanded="false"></button>';
  fold.firstChild.addEventListener("click", () => {
    fold.firstChild.ariaExpanded = String(fold.firstChild.ariaExpanded === "false");
    arrange(shown);
    fold.nextElementSibling?.scrollIntoView({ block: "nearest" });
  });
  let shown = null; // the picture

  function makeRow(label) {
    const row = template.content.firstElementChild.cloneNode(true);
    const [colour, name, eye, remove] = row.querySelectorAll("input, button");
    row.dataset.word = label.word;
    name.firstElementChild.textContent = label.word;
    colour.setAttribute("aria-label", `Colour of ${label.word}`);
    eye.setAttribute("aria-label", `Hide ${label.word}`);
    remove.setAttribute("aria-label", `Remove ${label.word}`);
    colour.addEventListener("input", () => {
      label.style.colour = colour.value;
      on.paint();
    });
    eye.addEventListener("click", () => {
      label.style.hidden = !label.style.hidden;
      on.decide();
    });
    name.addEventListener("click", () => on.isolate(label));
    remove.addEventListener("click", () => {
      const next = row.nextElementSibling ?? row.previousElementSibling;
      on.remove(label);
      next?.querySelector(".remove, .link").focus();
    });
    return row;
  }

  function update(row, label, picture) {
    const [colour, name, eye] = row.querySelectorAll("input, button");
    const share = picture.shares.get(label);
    const { colour: shade, hidden } = label.style;
    colour.value = shade;
    row.style.setProperty("--colour", shade);
    row.style.setProperty("--share", share ?? 0);
    row.classList.toggle("hidden", hidden);
    row.querySelector(".error").textContent = label.error;
    row.querySelector(".hint").textContent = label.note;
    const found = share ? percent(share) : "not found";
    const waiting = !label.plane && !label.error && picture.working ? "…" : "";
    row.querySelector(".why").textContent = (!hidden && picture.reasons.get(label)) || "";
    row.querySelector(".share").textContent = hidden ? "hidden" : share === undefined ? waiting : found;
    name.setAttribute("aria-pressed", String(picture.isolated === label));
    name.title = `Show the probability of ${label.word} alone`;
    eye.setAttribute("aria-pressed", String(hidden));
  }

  /** Put the rows in order: of many labels first those found, and those not found only while unfolded. */
  function arrange(picture) {
    const many = picture.labels.length > MANY;
    const missing = picture.labels.filter((label) => many && picture.shares.get(label) === 0);
    const open = fold.firstChild.ariaExpanded === "true";
    fold.firstChild.textContent = `${missing.length} not found${open ? "" : " …"}`;
    const first = picture.labels.filter((label) => !missing.includes(label));
    if (many) first.sort((a, b) => Number(picture.shares.has(b)) - Number(picture.shares.has(a)));
    const items = first.map((label) => rows.get(label));
    if (missing.length) items.push(fold, ...(open ? missing.map((label) => rows.get(label)) : []));
    if (items.length === list.children.length && items.every((item, place) => list.children[place] === item)) return;
    const focused = document.activeElement;
    list.replaceChildren(...items);
    if (focused?.isConnected) focused.focus(); // moved elements lose it
  }

  /** Update the rows to the picture's labels; rows that stay keep their focus. */
  return function show(picture) {
    for (const [label, row] of rows) {
      if (picture.labels.includes(label)) continue;
      rows.delete(label);
    }
    for (const label of picture.labels) {
      if (!rows.has(label)) rows.set(label, makeRow(label));
      update(rows.get(label), label, picture);
    }
    shown = picture;
    arrange(picture);
  };
}
