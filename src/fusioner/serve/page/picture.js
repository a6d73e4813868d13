// One picture of the session, its labels and their logits from the server.

import { ApiError, request, requestJson } from "./api.js";
import { decodePlane } from "./decide.js";
import { capital, names } from "./words.js";

const MANY = 8; // labels; more are counted, not named, while they are looked for
const PROGRESS_MS = 400; // between questions for the progress of windows

export class Picture {
  #uploaded = null; // promise of the server's response to the upload
  #cancel = null; // AbortController while the picture is read in windows
  #completing = null;
  #requestedWords = ""; // of the present planes, for models whose labels depend on each other

  /**
   * @param file a File, or a Blob with a name
   * @param independent whether the plane of a label is independent of the other labels
   * @param on.working(picture) the progress text has changed; on.planes(picture) new planes have arrived
   */
  constructor(file, name, independent, on) {
    Object.assign(this, { file, name, independent, on });
    this.url = URL.createObjectURL(file);
    this.mode = "whole"; // or "slide"
    this.labels = []; // { word, style: { colour, hidden }, plane, peak: its highest probability, mode of the plane, error, note }
    this.isolated = null; // the only label shown, if any
    this.spot = null; // point { u, v } in the only region of it shown, if any
    this.regions = null; // of the map, if they are apart, see findRegions
    this.reasons = new Map(); // label -> number of its regions, or why it has no pixels
    this.visible = false; // whether the browser can show the file
    this.size = null; // { width, height }, px
    this.map = null; // { data, width, height }: label numbers, indices into `shown`
    this.shares = new Map(); // label in `shown` -> fraction of the picture
    this.grid = null; // { height, width } of the planes
    this.working = ""; // progress text
    this.reading = false; // whether the picture itself is being sent or read
  }

  /** The labels that have a plane and are not hidden. */
  get shown() {
    return this.labels.filter((label) => label.plane && !label.style.hidden);
  }

  /** Add a label; `style` is shared with the same word of other pictures. */
  add(word, style) {
    this.labels.push({ word, style, plane: null, mode: null, error: "", note: "" });
  }

  remove(label) {
    this.labels = this.labels.filter((other) => other !== label);
    if (this.isolated === label) this.isolated = null;
  }

  /** Upload the picture, unless the server has it already. */
  upload() {
    this.#uploaded ??= this.#send().catch((error) => {
      this.#uploaded = null;
      throw error;
    });
    return this.#uploaded;
  }

  /** Request the missing planes; words added meanwhile are requested together in the next round. */
  complete() {
    this.#completing ??= this.#fill().finally(() => {
      this.#completing = null;
      this.#report("");
    });
    return this.#completing;
  }

  /** Read the picture in sliding windows and request all planes anew; if cancelled, everything stays as it was. */
  async refine() {
    this.#cancel = new AbortController();
    const before = this.#uploaded;
    try {
      this.#uploaded = Promise.resolve(await this.#send("slide", this.#cancel.signal));
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      return;
    } finally {
      this.#cancel = null;
      this.#report("");
    }
    this.mode = "slide";
    before?.then(({ id }) => request("DELETE", `v1/images/${id}`)).catch(() => {});
    await this.complete();
  }

  get refining() {
    return this.#cancel !== null;
  }

  cancel() {
    this.#cancel.abort();
  }

  /** Throw an ApiError unless a label is shown. */
  requireLabels() {
    if (!this.labels.length) throw new ApiError("there are no labels yet: add one.");
    if (!this.shown.length) throw new ApiError("no label is shown: show at least one to download its mask.");
  }

  /** Request a file in one of the output formats -> { blob, name }. */
  async download(format, { threshold, background, instances }) {
    const labels = this.shown.map((label) => label.word);
    return this.#segment(request, { labels, threshold, background, instances, format });
  }

  close() {
    this.#cancel?.abort();
    URL.revokeObjectURL(this.url);
    this.#uploaded?.then(({ id }) => request("DELETE", `v1/images/${id}`)).catch(() => {});
  }

  async #fill() {
    if (this.#missing().length) await this.upload(); // which reports its own progress
    for (let words = this.#missing(); words.length; words = this.#missing()) {
      this.#report(`Looking for ${words.length > MANY ? `${words.length} labels` : words.join(", ")}`);
      const mode = this.mode;
      let reply;
      try {
        reply = await this.#segment(requestJson, { labels: words, format: "logits" });
      } catch (error) {
        if (error.status !== 422) throw error;
        await this.#markRefused(words, error);
        continue;
      }
      this.grid = reply.grid;
      this.#requestedWords = words.join() + mode;
      for (const label of this.labels) {
        const place = words.indexOf(label.word);
        if (place < 0) continue;
        const note = capital((reply.notes ?? []).find((note) => names(note, label.word)) ?? "");
        const plane = decodePlane(reply.planes[place], reply.low, reply.step);
        const peak = 1 / (1 + Math.exp(-plane.reduce((most, value) => Math.max(most, value), -Infinity)));
        Object.assign(label, { plane, peak, mode, note });
      }
      this.on.planes(this);
    }
  }

  #missing() {
    const labels = this.labels.filter((label) => !label.error);
    if (this.independent) return labels.filter((label) => label.mode !== this.mode).map((label) => label.word);
    const words = labels.map((label) => label.word);
    return words.join() + this.mode === this.#requestedWords ? [] : words;
  }

  /** Find the labels for which the server refuses the request, at least one, and write its reason in them. */
  async #markRefused(words, reason) {
    const reasons = new Map();
    for (const word of words.length > 1 ? words : []) {
      await this.#segment(request, { labels: [word], format: "logits" }).catch((error) => {
        if (error.status !== 422) throw error;
        reasons.set(word, error.message);
      });
    }
    if (!reasons.size) reasons.set(words.at(-1), reason.message);
    for (const label of this.labels) {
      const reason = reasons.get(label.word)?.replace(/^label \d+ /, "this label "); // its number in the request
      label.error = reason ? capital(reason) : label.error;
    }
    this.on.working(this);
  }

  /** Send a request about this picture, which is uploaded again if the server has dropped it. */
  async #segment(send, body) {
    for (let again = false; ; again = true) {
      const { id } = await this.upload();
      try {
        return await send("POST", `v1/images/${id}/segment`, body);
      } catch (error) {
        if (again || !(error instanceof ApiError) || error.status !== 404) throw error;
        this.#uploaded = null;
      }
    }
  }

  async #send(mode = this.mode, signal = undefined) {
    const form = new FormData();
    form.append("image", this.file, this.name);
    const reading = mode === "slide" ? "Reading the picture in windows" : "Reading the picture";
    let follow = 0; // timer
    const progress = (share) => {
      this.#report(share < 1 ? `Sending ${Math.floor(100 * share)} %` : reading, true);
      if (share === 1 && mode === "slide") follow ||= setInterval(showWindows, PROGRESS_MS);
    };
    const id = Array.from(crypto.getRandomValues(new Uint32Array(4)), (value) => value.toString(36)).join("-");
    if (mode === "slide") {
      form.append("mode", mode);
      form.append("progress_id", id);
    }
    const showWindows = async () => {
      const { done, total } = await requestJson("GET", `v1/progress/${id}`).catch(() => ({}));
      if (total && follow) this.#report(`${reading}, ${Math.floor((100 * done) / total)} %`, true);
    };
    const [start, before] = [performance.now(), this.working];
    progress(0);
    try {
      const reply = await requestJson("POST", "v1/images", form, progress, signal);
      this.seconds = (performance.now() - start) / 1000; // that the reading took
      this.size = { width: reply.width, height: reply.height };
      return reply;
    } finally {
      clearInterval(follow);
      follow = 0;
      this.#report(before);
    }
  }

  #report(working, reading = false) {
    Object.assign(this, { working, reading });
    this.on.working(this);
  }
}
