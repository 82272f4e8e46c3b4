// One picture on the stage: a mosaic while it is drawn, then the picture with what can be done with it.

import { Mosaic } from "./mosaic.js";

/** An element with attributes and children; texts are texts, never markup. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** An icon of the page's sprite. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("aria-hidden", "true");
  svg.append(document.createElementNS(space, "use"));
  svg.firstChild.setAttribute("href", `#i-${name}`);
  return svg;
}

/** A figure of a picture to come. */
export class Figure {
  /** `act` has the functions view, vary, edit and save, each of a record. */
  constructor({ width, height, unit, label }, act) {
    this.act = act;
    this.canvas = make("canvas", { role: "img", ariaLabel: "A picture being drawn" });
    this.caption = make("figcaption", {}, make("span", { className: "told" }, label));
    this.root = make("figure", {}, this.canvas, this.caption);
    this.root.style.setProperty("--shape", String(width / height));
    this.mosaic = new Mosaic(this.canvas, width, height, unit);
    this.iteration = 0;
    this.total = 0;
    this.ahead = 0;
    this.isDone = false;
    this.failure = "";
  }

  /** Show that iterations passed, and a newer preview where there is one. */
  async follow(progress, known, blob) {
    this.iteration = progress.iteration;
    this.total = progress.num_iterations;
    this.mosaic.mark(progress.grid, known);
    if (!blob) return;
    const bitmap = await createImageBitmap(blob);
    if (!this.isDone) this.mosaic.show(bitmap, known);
  }

  /** Open the last tiles, then show the file itself. */
  async complete(record) {
    this.isDone = true;
    this.iteration = this.total;
    const bitmap = await createImageBitmap(record.blob);
    this.root.dataset.seed = String(record.settings.seed);
    await this.mosaic.finish(bitmap);
    const image = make("img", { src: URL.createObjectURL(record.blob), alt: record.settings.prompt, draggable: false });
    await image.decode().catch(() => {});
    const view = make("button", { type: "button", className: "picture", title: "View large" }, image);
    view.setAttribute("aria-label", `View large: ${record.settings.prompt}, seed ${record.settings.seed}`);
    view.addEventListener("click", () => view.closest(".stacked") || this.act.view(record));
    this.canvas.replaceWith(view);
    const actions = make("span", { className: "small" });
    for (const [name, symbol, text] of [["vary", "vary", "Vary"], ["edit", "brush", "Edit"], ["save", "save", "Download"]]) {
      const button = make("button", { type: "button", className: "quiet icon", title: text, ariaLabel: text }, icon(symbol));
      button.addEventListener("click", () => this.act[name](record));
      actions.append(button);
    }
    const told = this.caption.querySelector(".told");
    told.textContent = [told.textContent, `seed ${record.settings.seed}`].filter(Boolean).join(" · ");
    this.caption.append(actions);
  }

  /** Say why there will be no picture. */
  fail(message) {
    this.isDone = true;
    this.iteration = this.total;
    this.failure = message;
    this.mosaic.stop();
    this.root.classList.add("failed");
    this.canvas.ariaLabel = `A picture that failed: ${message}`;
    const told = this.caption.querySelector(".told");
    told.textContent = [told.textContent, message].filter(Boolean).join(" · ");
  }

  remove() {
    this.mosaic.stop();
    this.root.remove();
  }
}
