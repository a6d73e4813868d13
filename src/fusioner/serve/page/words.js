// Texts of the page.

/** 0.614 -> "61 %"; small fractions keep a digit so that they do not read as 0 %. */
export function percent(share) {
  const value = 100 * share;
  if (value === 0 || value >= 9.95) return `${Math.round(value)} %`;
  return value < 0.1 ? "< 0.1 %" : `${value.toFixed(1)} %`;
}

/** 20.3 -> "21 s", 490 -> "9 min" */
export function duration(seconds) {
  return seconds > 90 ? `${Math.ceil(seconds / 60)} min` : `${Math.ceil(seconds)} s`;
}

/** "cat 61 %, sofa not found" */
export function summary(picture) {
  return picture.labels
    .filter((label) => picture.shares.has(label))
    .sort((a, b) => picture.shares.get(b) - picture.shares.get(a))
    .map((label) => `${label.word} ${picture.shares.get(label) ? percent(picture.shares.get(label)) : "not found"}`)
    .join(", ");
}

/** Whether a note of the server is about a label: "what is wrong: cat, sofa" or "'red cup' and 'cup' differ". */
export function names(note, word) {
  return note.includes(`'${word}' `) || note.slice(note.indexOf(": ") + 2).split(", ").includes(word);
}

export const SEPARATOR = /[,;、，\n]/;

/** Split typed text at separators, and collapse spaces. */
export function parse(text) {
  return text.split(SEPARATOR).map((word) => word.trim().replace(/\s+/g, " ")).filter(Boolean);
}

/** Capitalize the first letter of a sentence. */
export function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** File name without its suffix. */
export function stem(name) {
  return name.replace(/\.[^.]*$/, "") || "picture";
}
