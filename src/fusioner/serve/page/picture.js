// One picture of the session: its labels, and what the server said of them.

import { ApiError, ask, askJson } from "./api.js";
import { decodePlane } from "./decide.js";
import { freeColour } from "./palette.js";

export class Picture {
  #answer = null; // promise of what the server said to the upload
  #filling = null;
  #askedTogether = ""; // the words of the planes at hand, for models whose labels depend on each other

  /**
   * @param file a File, or a Blob with a name
   * @param independent whether the model's planes do not depend on what else is asked for
   * @param on.working(picture) what is waited for has changed; on.planes(picture) there is more to decide about
   */
  constructor(file, name, independent, on) {
    Object.assign(this, { file, name, independent, on });
    this.url = URL.createObjectURL(file);
    this.labels = []; // { word, colour, hidden, plane }
    this.alone = null; // the label shown by itself
    this.visible = false; // whether the browser can show the file
    this.size = null; // { width, height }, px
    this.map = null; // { data, width, height }: what was decided last, numbers into `shown`
    this.shares = new Map(); // label -> its share of the picture, of those in `shown`
    this.grid = null; // { height, width } of the planes
    this.working = ""; // what is being waited for, in words
    this.reading = false; // whether that is the picture itself
  }

  /** What is decided about: the labels at hand that are not hidden. */
  get shown() {
    return this.labels.filter((label) => label.plane && !label.hidden);
  }

  add(word) {
    const colour = freeColour(this.labels.map((label) => label.colour));
    this.labels.push({ word, colour, hidden: false, plane: null });
  }

  remove(label) {
    this.labels = this.labels.filter((other) => other !== label);
    if (this.alone === label) this.alone = null;
  }

  /** Send the picture, unless the server has it already. */
  upload() {
    this.#answer ??= this.#send().catch((error) => {
      this.#answer = null;
      throw error;
    });
    return this.#answer;
  }

  /** Ask for the planes that are missing; words added meanwhile go together in the next round. */
  complete() {
    this.#filling ??= this.#fill().finally(() => {
      this.#filling = null;
      this.#tell("");
    });
    return this.#filling;
  }

  /** The file of one kind that the server makes -> { blob, name }. */
  download(kind, { threshold, background }) {
    return this.#segment(ask, { labels: this.shown.map((label) => label.word), threshold, background, format: kind });
  }

  close() {
    URL.revokeObjectURL(this.url);
    this.#answer?.then(({ id }) => ask("DELETE", `v1/images/${id}`)).catch(() => {});
  }

  async #fill() {
    for (let words = this.#missing(); words.length; words = this.#missing()) {
      if (this.#answer) this.#tell(`Looking for ${words.join(", ")}`);
      const reply = await this.#segment(askJson, { labels: words, format: "logits" });
      this.grid = reply.grid;
      this.#askedTogether = words.join();
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
    return words.join() === this.#askedTogether ? [] : words;
  }

  /** A request about this picture; sends it again when the server had to let go of it. */
  async #segment(how, body) {
    for (let again = false; ; again = true) {
      const { id } = await this.upload();
      try {
        return await how("POST", `v1/images/${id}/segment`, body);
      } catch (error) {
        if (again || !(error instanceof ApiError) || error.status !== 404) throw error;
        this.#answer = null;
      }
    }
  }

  async #send() {
    const form = new FormData();
    form.append("image", this.file, this.name);
    const sent = (share) => this.#tell(share < 1 ? `Sending ${Math.floor(100 * share)} %` : "Reading the picture", true);
    sent(0);
    try {
      const reply = await askJson("POST", "v1/images", form, sent);
      this.size = { width: reply.width, height: reply.height };
      return reply;
    } finally {
      this.#tell("");
    }
  }

  #tell(working, reading = false) {
    Object.assign(this, { working, reading });
    this.on.working(this);
  }
}
