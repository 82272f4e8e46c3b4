// Two pictures of one seed by two models: side by side, or one above the other with a slider between.

/** Lets the two figures of the results be compared. */
export class Comparison {
  constructor({ between, results, beside, above, split }) {
    Object.assign(this, { between, results, beside, above, split });
    for (const radio of [beside, above]) radio.addEventListener("change", () => this.arrange());
    split.addEventListener("input", () => this.arrange());
    for (const kind of ["pointerdown", "pointermove"]) results.addEventListener(kind, (event) => this.wipe(event));
  }

  /** Begin with what is on the stage. */
  show() {
    this.between.hidden = false;
    this.beside.checked = true;
    this.split.value = "50";
    this.arrange();
  }

  hide() {
    this.between.hidden = true;
    this.beside.checked = true;
    this.arrange();
  }

  arrange() {
    const isAbove = this.above.checked;
    this.results.classList.toggle("stacked", isAbove);
    this.split.closest("label").hidden = !isAbove;
    this.results.style.setProperty("--split", `${this.split.value}%`);
  }

  /** The slider follows a pressed pointer on the pictures. */
  wipe(event) {
    if (!this.above.checked || event.buttons !== 1) return;
    const box = this.results.querySelector("figure").getBoundingClientRect();
    this.split.value = String(Math.round((100 * (event.clientX - box.left)) / box.width));
    this.arrange();
  }
}
