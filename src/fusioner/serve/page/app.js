// The page: opening pictures, typing labels, settings, downloads and the history of the session.

import { ApiError, callbacks, request, requestJson } from "./api.js";
import { createDownloads, save } from "./downloads.js";
import { createLabelList } from "./labels.js";
import { Picture } from "./picture.js";
import { asSeen, createStage, cutOut, isolatedRegion, smallMasks } from "./stage.js";
import { colour, freeColour } from "./palette.js";
import { createThumbnails } from "./thumbnails.js";
import { capital, duration, parse, percent, SEPARATOR, stem, summary } from "./words.js";

const MAX_PICTURES = 24; // of the session
const NAMED_CLASSES = 8; // in the sentence under the downloads; the file has all
const SETTLE_MS = 400; // without a change before the result is announced
const OWN_NAMES = { labelme: ".json", yolo: ".txt" }; // suffixes of files that belong beside the picture

const $ = (id) => document.getElementById(id);
const settings = { threshold: 0.5, background: true, opacity: 0.45, outlines: true, instances: false };

/** The state of the page; `current` is null while the samples are shown. */
export const session = { model: null, current: null, pictures: [], settings };
const styles = new Map(); // lower-case word -> { colour, hidden }, the same in all pictures

const stage = createStage(settings, { isolate, decided, say });
const thumbnails = createThumbnails($("pictures"), show);
const showRows = createLabelList($("labels"), $("label-row"), {
  decide: stage.draw,
  paint: stage.repaint,
  remove,
  isolate: (label) => isolate(session.current.isolated === label ? null : label),
});

function showLabels(picture) {
  showRows(picture);
  $("alone").hidden = !picture.shown.includes(picture.isolated);
  if (!$("alone").hidden) $("alone").firstChild.textContent = `Only ${nameOfIsolated(picture)}`;
}

// --- pictures

/**
 * Upload a picture and request its labels -> Picture, undefined if it is refused.
 *
 * It is shown at once, unless `quiet`; nothing that ends later takes view or focus from what the person looks at.
 */
async function open(file, words = session.current?.labels.map((label) => label.word) ?? rememberedWords(), quiet = false) {
  const name = file.name || "pasted picture";
  if (!(await modelKnown)) return;
  complain("picture-error");
  if (file.type && !file.type.startsWith("image/")) return complain("picture-error", `${name} is not a picture.`);
  const [before, latestBefore] = [session.current, latest];
  const picture = new Picture(file, name, session.model.labels_independent ?? true, { working, planes });
  words.forEach((word) => picture.add(word, styleOf(word)));
  const sent = picture.upload();
  sent.catch(() => {}); // awaited below
  const image = await preview(picture);
  if (!quiet) show(picture);
  try {
    await sent;
  } catch (error) {
    picture.close();
    if (latest === picture) latest = latestBefore;
    if (session.current === picture) before ? show(before) : leave();
    return complain("picture-error", `${name}: ${error.message}`, error, () => open(file, words));
  }
  session.pictures.unshift(picture);
  session.pictures.splice(MAX_PICTURES).forEach((old) => old.close());
  thumbnails.show(session.pictures, session.current);
  if (session.current === picture) {
    stage.show(picture);
    if (!picture.visible) complain("picture-error", `This browser cannot show ${name}, but its masks are correct.`);
  } else if (picture.visible) {
    thumbnails.draw(picture, [image]);
  }
  await complete(picture);
  return picture;
}

/** Decode the file in the browser, before the server has read it -> Image. */
async function preview(picture) {
  const image = new Image();
  image.src = picture.url;
  picture.visible = await image.decode().then(() => true, () => false);
  if (picture.visible) picture.size = { width: image.naturalWidth, height: image.naturalHeight };
  return image;
}

let latest = null; // the picture shown last, to which Back and Forward return

function show(picture) {
  if (session.current !== picture) ["words-error", "picture-error", "download-error", "classes"].forEach((place) => complain(place));
  if (unsettled && unsettled !== picture) settle(); // its thumbnail
  session.current = latest = picture;
  document.body.dataset.state = "open";
  if (!history.state?.open) history.pushState({ open: true }, "");
  stage.show(picture);
  rememberWords(picture);
  planes(picture);
  working(picture);
  thumbnails.show(session.pictures, picture);
  if (matchMedia("(pointer: fine)").matches) $("words").focus();
}

/** Show the samples; they replace the picture in the browser's history. */
function leave() {
  if (unsettled) settle(); // later it would draw over a thumbnail with masks
  session.current = null;
  document.body.dataset.state = "empty";
  if (history.state?.open) history.replaceState(null, "");
  thumbnails.show(session.pictures, null);
}

history.replaceState(null, ""); // after a reload nothing is open
window.addEventListener("popstate", ({ state }) => (state?.open && latest ? show(latest) : leave()));

async function planes(picture) {
  if (picture === session.current) return stage.draw();
  const image = await preview(picture);
  if (picture.visible && picture !== session.current) thumbnails.draw(picture, [image, smallMasks(picture, settings)]);
}

function working(picture) {
  if (picture !== session.current) return;
  if (picture.working && !$("working").textContent) say(picture.working);
  showFiner(picture);
  $("working").textContent = picture.working;
  $("reading").hidden = !picture.reading;
  showLabels(picture);
}

async function complete(picture) {
  try {
    await picture.complete();
  } catch (error) {
    if (picture === session.current) complain("words-error", capital(error.message), error, () => complete(picture));
  }
}

/** Number of windows in which the server reads a picture in mode slide. */
function windows({ width, height }) {
  const side = session.model.resolution;
  const count = (length) => Math.ceil(Math.max(0, length - side) / Math.floor((side * 2) / 3)) + 1;
  return count(width) * count(height);
}

function showFiner(picture) {
  const number = picture.size ? windows(picture.size) : 1;
  const time = picture.seconds ? `, about ${duration(picture.seconds * number)}` : "";
  const done = picture.mode === "slide";
  const text = done ? `Read in ${number} windows` : number > 1 ? `${number} windows at full size${time}` : "This picture is small: no windows";
  $("finer-cost").lastChild.textContent = text;
  $("finer").textContent = picture.refining ? "Cancel" : "Finer";
  $("finer").disabled = !picture.refining && (done || number === 1 || picture.working !== "");
}

$("finer").addEventListener("click", async () => {
  const picture = session.current;
  if (picture.refining) return picture.cancel();
  try {
    await picture.refine();
  } catch (error) {
    if (picture === session.current) complain("words-error", capital(error.message), error);
  }
});

// --- labels

function styleOf(word) {
  const key = word.toLowerCase();
  if (!styles.has(key)) styles.set(key, { colour: freeColour([...styles.values()].map((style) => style.colour)), hidden: false });
  return styles.get(key);
}

function addWords(text) {
  const picture = session.current;
  complain("words-error");
  for (const word of parse(text)) {
    if (picture.labels.some((label) => label.word.toLowerCase() === word.toLowerCase())) {
      complain("words-error", `${word} is in the list already.`);
    } else if (picture.labels.length >= (session.model.max_labels ?? Infinity)) {
      complain("words-error", `This server takes ${session.model.max_labels} labels at once.`);
    } else {
      picture.add(word, styleOf(word));
    }
  }
  showLabels(picture);
  thumbnails.show(session.pictures, picture);
  rememberWords(picture);
  complete(picture);
}

function remove(label) {
  const picture = session.current;
  complain("words-error");
  picture.remove(label);
  label.style.hidden = false;
  stage.draw();
  thumbnails.show(session.pictures, picture);
  rememberWords(picture);
  if (!picture.labels.length) $("words").focus(); // the row with the focus is gone
  complete(picture);
}

/** Keep the labels over a reload of the page, for the next picture. */
function rememberWords(picture) {
  sessionStorage.setItem("words", JSON.stringify(picture.labels.map((label) => label.word)));
}

function rememberedWords() {
  return JSON.parse(sessionStorage.getItem("words") ?? "[]");
}

function isolate(label, spot = null) {
  const picture = session.current;
  Object.assign(picture, { isolated: label, spot });
  stage.repaint();
  showLabels(picture);
  say(!label ? "all labels" : isolatedRegion(picture) ? `${nameOfIsolated(picture)}, alone` : `probability of ${label.word} alone`);
}

function nameOfIsolated(picture) {
  const { rank, count } = picture.regions?.regions[isolatedRegion(picture)] ?? {};
  return picture.isolated.word + (rank ? `, region ${rank} of ${count}` : "");
}

// --- messages

let settling = 0;
let unsettled = null; // the picture whose result is not announced yet

function decided(picture) {
  showLabels(picture);
  thumbnails.show(session.pictures, picture);
  clearTimeout(settling);
  unsettled = picture;
  settling = setTimeout(settle, SETTLE_MS);
}

function settle() {
  const picture = unsettled;
  unsettled = null;
  clearTimeout(settling);
  if (picture.shown.length) say(summary(picture));
  thumbnails.draw(picture, stage.layers());
}

function say(text) {
  if (unsettled) settle(); // what waits to be announced must not replace what is newer
  $("live").textContent = text;
}

/** Show a sentence at its place, or remove it; with a button to try again if waiting may help. */
function complain(place, text = "", error = null, again = null) {
  $(place).replaceChildren(text);
  if (text) $(place).scrollIntoView({ block: "nearest" });
  if (!again || (error.status && error.status < 429)) return;
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Try again" });
  button.className = "link";
  button.addEventListener("click", () => {
    complain(place);
    again();
  });
  $(place).append(" ", button);
}

callbacks.busy = (seconds) => {
  $("working").textContent = `The server is busy; trying again in ${seconds} s`;
};
callbacks.key = (refused) => {
  $("key-form").hidden = false;
  $("key-error").textContent = refused ? "The server does not accept this key." : "";
  $("key").focus();
  return new Promise((resolve) => {
    $("key-form").onsubmit = (event) => {
      event.preventDefault();
      $("key-form").hidden = true;
      resolve($("key").value.trim());
    };
  });
};

// --- user actions

for (const button of document.querySelectorAll("[data-open]")) button.addEventListener("click", () => $("file").click());
$("file").addEventListener("change", async () => {
  const files = [...$("file").files];
  $("file").value = "";
  await openAll(files);
});

/** Open files one after the other; those after the person has turned to another picture open quietly. */
async function openAll(files) {
  let expected = session.current;
  for (const file of files) {
    const quiet = session.current !== expected;
    const picture = await open(file, undefined, quiet);
    if (!quiet) expected = picture ?? session.current;
  }
}

document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) openAll([...event.clipboardData.files]);
});

let dragging = 0; // depth of nested elements
document.addEventListener("dragenter", (event) => {
  dragging++;
  $("drop").hidden = !event.dataTransfer.types.some((type) => ["Files", "text/uri-list"].includes(type));
});
document.addEventListener("dragleave", () => {
  if (--dragging === 0) $("drop").hidden = true;
});
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  dragging = 0;
  $("drop").hidden = true;
  const { files, types } = event.dataTransfer;
  if (files.length) openAll([...files]);
  else if (types.includes("text/uri-list")) {
    complain("picture-error", "That was a link. This page loads nothing from other sites: save the picture, then drop the file.");
  }
});

$("words").addEventListener("input", () => {
  if (SEPARATOR.test($("words").value)) takeWords();
});
$("words").addEventListener("paste", (event) => {
  const text = event.clipboardData.getData("text");
  if (!text.includes("\n")) return; // which a text box would drop
  event.preventDefault();
  addWords(`${$("words").value}${text}`);
  $("words").value = "";
});
$("words").addEventListener("keydown", (event) => {
  const last = session.current?.labels.at(-1);
  if (event.key === "Backspace" && !$("words").value && last) remove(last);
});
$("words-form").addEventListener("submit", (event) => {
  event.preventDefault();
  takeWords();
});

function takeWords() {
  const text = $("words").value;
  $("words").value = "";
  addWords(text);
}

$("alone").addEventListener("click", () => {
  isolate(null);
  $("frame").focus(); // the button is gone
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && session.current?.isolated) isolate(null);
});

function connect(id, act) {
  let waiting = 0;
  $(id).addEventListener("input", (event) => {
    settings[id] = event.target.type === "checkbox" ? event.target.checked : Number(event.target.value);
    showSettings();
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(act);
  });
}
connect("threshold", stage.draw);
connect("background", stage.draw);
connect("opacity", stage.repaint);
connect("outlines", stage.repaint);
connect("instances", stage.draw);

function showSettings() {
  $("threshold").value = settings.threshold;
  $("threshold").disabled = !settings.background;
  for (const id of ["threshold", "opacity"]) {
    $(id).ariaValueText = $(`${id}-value`).textContent = percent(settings[id]);
  }
}

$("home").addEventListener("click", () => {
  history.pushState(null, "");
  leave();
  complain("picture-error");
  $("samples").querySelector("button")?.focus();
});
$("help-open").addEventListener("click", () => $("help").showModal());

window.addEventListener("beforeunload", (event) => {
  if (session.pictures.some((picture) => picture.shown.length)) event.preventDefault(); // the browser asks
});

// --- start

async function make(format) {
  const picture = session.current;
  if (format !== "seen") picture.requireLabels();
  if (!["seen", "cutout"].includes(format)) {
    const { blob, name } = await picture.download(format, settings);
    if (format === "yolo") offerClasses(picture);
    const suffix = OWN_NAMES[format];
    return { blob, name: suffix ? stem(picture.name) + suffix : name };
  }
  if (format === "cutout" && !picture.visible) {
    throw new ApiError(`this browser cannot show ${picture.name}, and so not cut it out: download the overlay or the mask.`);
  }
  const canvas = (format === "seen" ? asSeen : cutOut)(picture, settings, stage.photo);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  if (!blob) throw new ApiError("this browser cannot draw so large a picture: download the overlay or the mask.");
  return { blob, name: `${stem(picture.name)}.${format}.png` };
}

/** A YOLO file holds numbers of classes only: show their names, and offer them as a file. */
function offerClasses(picture) {
  const words = picture.shown.map((label) => label.word);
  const named = words.slice(0, NAMED_CLASSES).map((word, index) => `${index} ${word}`);
  if (words.length > named.length) named.push(`and ${words.length - named.length} more`);
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "classes.txt" });
  button.className = "link";
  button.addEventListener("click", () => save(new Blob([words.join("\n") + "\n"]), "classes.txt"));
  $("classes").replaceChildren(`Classes: ${named.join(", ")}. `, button);
  $("classes").scrollIntoView({ block: "nearest" });
}

$("copy").hidden = !navigator.clipboard?.write; // absent on pages without TLS of other machines
$("copy").addEventListener("click", async () => {
  complain("download-error");
  try {
    const { blob } = await make("cutout");
    await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
    say("Cut-out copied");
  } catch (error) {
    complain("download-error", capital(error.message));
  }
});

async function showSamples() {
  for (const sample of await requestJson("GET", "v1/samples")) {
    const row = $("sample-card").content.firstElementChild.cloneNode(true);
    const button = row.firstElementChild;
    const [photo, masks] = button.querySelectorAll("img");
    photo.src = sample.url;
    masks.src = sample.url.replace(/\w+$/, "png");
    button.querySelector(".words").append(...sample.labels.map(sampleLabel));
    button.title = `${sample.name}. ${sample.credit}`;
    button.setAttribute("aria-label", `${sample.name}: find ${sample.labels.join(", ")}`);
    button.addEventListener("click", () => openSample(sample));
    $("samples").append(row);
  }
}

function sampleLabel(word, index) {
  const label = document.createElement("span");
  label.append(document.createElement("i"), word);
  label.style.setProperty("--colour", colour(index));
  return label;
}

async function openSample({ url, labels }) {
  try {
    const { blob } = await request("GET", url);
    await open(new File([blob], url.split("/").at(-1), { type: blob.type }), labels);
  } catch (error) {
    complain("picture-error", capital(error.message));
  }
}

async function loadModel() {
  $("where").textContent = "The model is being loaded …";
  const { models } = await requestJson("GET", "v1/models");
  session.model = models[0];
  settings.threshold = session.model.threshold;
  showSettings();
  createDownloads($("downloads"), session.model.formats, make, (text) => complain("download-error", text));
  $("where").textContent = `Your pictures are sent to ${location.host} only.`;
  $("version").textContent = session.model.version;
  $("api").textContent = new URL("v1/segment", location).href;
}

/** Promise of whether the samples and the model could be loaded. */
const modelKnown = showSamples().then(loadModel).then(() => true, (error) => {
  $("where").textContent = "";
  complain("picture-error", capital(error.message), error, () => location.reload());
  return false;
});
