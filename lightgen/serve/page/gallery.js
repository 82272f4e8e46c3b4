// The history: thumbnails of the pictures that the store keeps.

import { icon, make } from "./figure.js";
import * as store from "./store.js";

/** Shows the store, newest first. */
export class Gallery {
  constructor(list, count, forget, view) {
    Object.assign(this, { list, count, forget, view, records: new Map() });
  }

  /** Show what the store keeps. A browser that keeps nothing (private windows) shows this visit alone. */
  async load() {
    const records = await store.readAll().catch(() => []);
    for (const record of records) this.show(record);
    this.tell();
  }

  async add(record) {
    try {
      const { id, left } = await store.add(record);
      record.id = id;
      for (const each of left) this.hide(each);
    } catch {
      record.id = -Date.now() - this.records.size;
    }
    this.show(record);
    this.tell();
  }

  async remove(record) {
    await store.remove(record.id).catch(() => {});
    this.hide(record.id);
    this.tell();
  }

  async clear() {
    await store.clear().catch(() => {});
    for (const id of [...this.records.keys()]) this.hide(id);
    this.tell();
  }

  /** The record after another in the direction of newer (-1) or older (1), or undefined. */
  beside(record, direction) {
    const ids = [...this.records.keys()].reverse();
    const at = ids.indexOf(record.id);
    return at < 0 ? undefined : this.records.get(ids[at + direction])?.record;
  }

  show(record) {
    const url = URL.createObjectURL(record.blob);
    const image = make("img", { src: url, alt: record.settings.prompt, loading: "lazy", decoding: "async" });
    const open = make("button", { type: "button", className: "picture", title: record.settings.prompt }, image);
    open.setAttribute("aria-label", `View: ${record.settings.prompt}, seed ${record.settings.seed}`);
    open.addEventListener("click", () => this.view(record));
    const bin = make("button", { type: "button", className: "icon bin", title: "Delete" }, icon("bin"));
    bin.setAttribute("aria-label", `Delete: ${record.settings.prompt}, seed ${record.settings.seed}`);
    bin.addEventListener("click", () => this.drop(record));
    open.addEventListener("keydown", (event) => event.key === "Delete" && this.drop(record));
    const item = make("li", {}, open, bin);
    this.list.prepend(item);
    this.records.set(record.id, { record, item, url });
  }

  /** Delete and leave the focus on a neighbour. */
  async drop(record) {
    const { item } = this.records.get(record.id);
    const next = item.nextElementSibling ?? item.previousElementSibling;
    await this.remove(record);
    next?.querySelector("button").focus();
  }

  hide(id) {
    const shown = this.records.get(id);
    if (!shown) return;
    URL.revokeObjectURL(shown.url);
    shown.item.remove();
    this.records.delete(id);
  }

  tell() {
    const { size } = this.records;
    this.count.textContent = size ? `${size} ${size === 1 ? "picture" : "pictures"}, kept in this browser` : "Your pictures will be here";
    this.forget.hidden = size === 0;
  }
}
