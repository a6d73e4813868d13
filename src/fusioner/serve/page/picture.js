// One picture of the session, its labels and their logits from the server.

import { ApiError, request, requestJson } from "./api.js";
import { decodePlane } from "./decide.js";
import { freeColour } from "./palette.js";

export class Picture {
  #uploaded = null; // promise of the server's response to the upload
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
    this.labels = []; // { word, colour, hidden, plane }
    this.isolated = null; // the only label shown, if any
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
    return this.labels.filter((label) => label.plane && !label.hidden);
  }

  add(word) {
    const colour = freeColour(this.labels.map((label) => label.colour));
    this.labels.push({ word, colour, hidden: false, plane: null });
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

  /** Request a file in one of the output formats -> { blob, name }. */
  download(format, { threshold, background }) {
    return this.#segment(request, { labels: this.shown.map((label) => label.word), threshold, background, format });
  }

  close() {
    URL.revokeObjectURL(this.url);
    this.#uploaded?.then(({ id }) => request("DELETE", `v1/images/${id}`)).catch(() => {});
  }

  async #fill() {
    for (let words = this.#missing(); words.length; words = this.#missing()) {
      if (this.#uploaded) this.#report(`Looking for ${words.join(", ")}`);
      const reply = await this.#segment(requestJson, { labels: words, format: "logits" });
      this.grid = reply.grid;
      this.#requestedWords = words.join();
      for (const label of this.labels) {
        const place = words.indexOf(label.word);
        if (place >= 0) label.plane = decodePlane(reply.planes[place], reply.low, reply.step);
      }
      this.on.planes(this);
    }
  }

  #missing() {
    const words = this.labels.map((label) => label.word);
    if (this.independent) return words.filter((_, index) => !this.labels[index].plane);
    return words.join() === this.#requestedWords ? [] : words;
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

  async #send() {
    const form = new FormData();
    form.append("image", this.file, this.name);
    const progress = (share) => this.#report(share < 1 ? `Sending ${Math.floor(100 * share)} %` : "Reading the picture", true);
    progress(0);
    try {
      const reply = await requestJson("POST", "v1/images", form, progress);
      this.size = { width: reply.width, height: reply.height };
      return reply;
    } finally {
      this.#report("");
    }
  }

  #report(working, reading = false) {
    Object.assign(this, { working, reading });
    this.on.working(this);
  }
}
