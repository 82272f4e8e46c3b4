// The dialog that shows a picture large, with everything that is known of it.

import { make } from "./figure.js";

const FIRST = ["prompt", "negative_prompt", "seed", "size", "model", "preset"];
const HIDDEN = ["n", "width", "height"];

/** Everything known of a record, as [name, text]. */
export function describe(record) {
  const facts = { ...record.settings, ...record.facts };
  if (facts.width && facts.height) facts.size = `${facts.width}x${facts.height}`;
  const names = [...FIRST, ...Object.keys(facts).filter((name) => !FIRST.includes(name) && !HIDDEN.includes(name))];
  return names
    .filter((name) => facts[name] !== undefined && facts[name] !== null && facts[name] !== "")
    .map((name) => [name.replaceAll("_", " "), typeof facts[name] === "string" ? facts[name] : JSON.stringify(facts[name])]);
}

/** File name of a record: its prompt and seed. */
export function fileName({ settings }) {
  const stem = settings.prompt.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 60);
  return `${stem || "picture"}-${settings.seed}.png`;
}

/** Put a text on the clipboard, also where the browser grants no clipboard. */
export async function copyText(text, near) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = make("textarea", { value: text, className: "unseen", ariaLabel: "Text to copy" });
    near.append(area);
    area.select();
    const isCopied = document.execCommand("copy");
    area.remove();
    return isCopied;
  }
}

/** Shows one record at a time. */
export class Viewer {
  /** `parts` are the dialog's elements by id; `act` has again, change, reuse, remove and beside, of a record. */
  constructor(parts, act) {
    Object.assign(this, { parts, act, record: null, url: "" });
    const { viewer } = parts;
    parts.leave.addEventListener("click", () => viewer.close());
    viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
    viewer.addEventListener("close", () => this.forget());
    viewer.addEventListener("keydown", (event) => {
      const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const next = direction && act.beside(this.record, direction);
      if (next) this.show(next);
    });
    for (const name of ["again", "change", "reuse", "delete"]) {
      parts[name].addEventListener("click", () => {
        const { record } = this;
        viewer.close();
        act[name](record);
      });
    }
    parts.copy.addEventListener("click", () => this.copy());
  }

  show(record) {
    this.forget();
    this.record = record;
    this.url = URL.createObjectURL(record.blob);
    const { viewer, large, settings, download, copied } = this.parts;
    Object.assign(large, { src: this.url, alt: record.settings.prompt });
    Object.assign(download, { href: this.url, download: fileName(record) });
    copied.textContent = "";
    settings.replaceChildren(
      ...describe(record).map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, text))),
    );
    if (!viewer.open) viewer.showModal();
  }

  async copy() {
    const settings = this.record.facts ?? this.record.settings;
    const isCopied = await copyText(JSON.stringify(settings, null, 2), this.parts.viewer);
    this.parts.copied.textContent = isCopied ? "Copied as JSON" : "This browser does not let the page copy";
  }

  forget() {
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = "";
  }
}
