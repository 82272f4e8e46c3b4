// The tools around the editor's canvas, and what an edit asks of the server.

import { Editor } from "./canvas.js";

const SIDES = ["left", "right", "top", "bottom"];

/** Binds the editor's canvas to its buttons and inputs. */
export class Editing {
  constructor(parts) {
    this.parts = parts;
    this.editor = new Editor(parts.mask, document.querySelectorAll(".handle"), () => this.tell());
    for (const radio of [parts.brush, parts.eraser]) {
      radio.addEventListener("change", () => (this.editor.erase = parts.eraser.checked));
    }
    parts.thickness.addEventListener("input", () => (this.editor.size = Number(parts.thickness.value)));
    parts.undo.addEventListener("click", () => this.editor.undo());
    parts.clear.addEventListener("click", () => this.editor.clear());
    for (const side of SIDES) {
      parts[side].addEventListener("change", () => this.editor.grow(side, Number(parts[side].value)));
    }
    for (const each of [parts.strength, parts.feather]) each.addEventListener("input", () => this.tell());
  }

  get isOpen() {
    return this.editor.picture !== null;
  }

  /** Begin to edit a picture; `limits` are what the model says of itself. Returns whether it was made smaller. */
  async open(blob, limits) {
    const { parts } = this;
    const isSmaller = await this.editor.open(blob, limits);
    const most = Math.max(this.editor.width, this.editor.height);
    parts.thickness.max = String(Math.max(32, Math.round(most / 2)));
    Object.assign(parts.strength, { value: "100" });
    Object.assign(parts.feather, { value: "0" });
    for (const side of SIDES) parts[side].step = String(limits.unit);
    this.tell();
    return isSmaller;
  }

  close() {
    this.editor.close();
  }

  /** {parts: {image, mask}, settings} of the edit as it stands. */
  async request() {
    const { editor, parts } = this;
    const settings = {
      size: `${editor.width}x${editor.height}`,
      strength: Number(parts.strength.value) / 100,
      feather: Number(parts.feather.value),
    };
    return { parts: await editor.parts(), settings };
  }

  /** Show in the tools what the canvas has. */
  tell() {
    const { editor, parts } = this;
    if (!editor.picture) return;
    parts.brush.checked = !editor.erase;
    parts.eraser.checked = editor.erase;
    parts.thickness.value = String(editor.size);
    for (const side of SIDES) parts[side].value = String(editor.margins[side]);
    parts.stronger.textContent = `${parts.strength.value} %`;
    parts.softer.textContent = `${parts.feather.value} px`;
    parts.undo.disabled = editor.strokes.list.length === 0;
    parts.clear.disabled = parts.undo.disabled;
    const size = `${editor.width} × ${editor.height}`;
    parts.hint.textContent =
      editor.strokes.list.length || editor.isGrown
        ? `${size}. What is painted or added is drawn anew; all else stays as it is.`
        : `${size}. Brush over what shall change, or drag an edge to grow; with neither, all of it is drawn anew.`;
  }
}
