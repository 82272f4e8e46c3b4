// The editor's canvas: a picture whose mask is brushed and whose edges are dragged outwards.

import { Strokes, compose } from "./strokes.js";

const SIDES = ["left", "right", "top", "bottom"];
const NOTHING = { left: 0, right: 0, top: 0, bottom: 0 };
const AREAS = 4; // of what the model is made for, in a picture, where the server does not say
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Shows one picture to edit; calls `changed` after everything that a form beside it shows. */
export class Editor {
  constructor(canvas, handles, changed) {
    Object.assign(this, { canvas, changed, picture: null, blob: null, unit: 16, maxSide: 0, maxArea: 0 });
    Object.assign(this, { erase: false, size: 24, margins: { ...NOTHING }, strokes: new Strokes() });
    this.cursor = null;
    this.isPainting = false;
    canvas.addEventListener("pointerdown", (event) => this.press(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => this.release());
    canvas.addEventListener("pointerleave", () => this.place(null));
    canvas.addEventListener("keydown", (event) => this.keyDown(event));
    canvas.addEventListener("keyup", (event) => event.key === " " && this.release());
    canvas.addEventListener("blur", () => this.release());
    for (const handle of handles) handle.addEventListener("pointerdown", (event) => this.drag(event, handle));
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** Begin with a picture; one larger than the model allows is made smaller. Returns whether it was. */
  async open(blob, { unit, max_side: maxSide, default_size: size, max_pixels: most }) {
    let picture = await createImageBitmap(blob);
    const maxArea = most ?? AREAS * size.split("x").reduce((one, other) => one * other);
    const smaller = Math.sqrt(maxArea / (picture.width * picture.height));
    const scale = Math.min(1, maxSide / Math.max(picture.width, picture.height), smaller);
    if (scale < 1) {
      const [resizeWidth, resizeHeight] = [picture.width, picture.height].map((side) => Math.floor(side * scale));
      picture = await createImageBitmap(picture, { resizeWidth, resizeHeight, resizeQuality: "high" });
    }
    this.picture?.close();
    Object.assign(this, { picture, blob: scale < 1 ? null : blob, unit, maxSide, maxArea, cursor: null });
    this.margins = { ...NOTHING };
    this.strokes = new Strokes();
    this.size = Math.max(4, Math.round(Math.max(picture.width, picture.height) / 6));
    this.refresh();
    return scale < 1;
  }

  close() {
    this.picture?.close();
    this.picture = null;
  }

  get width() {
    return this.margins.left + this.picture.width + this.margins.right;
  }

  get height() {
    return this.margins.top + this.picture.height + this.margins.bottom;
  }

  get isGrown() {
    return SIDES.some((side) => this.margins[side] > 0);
  }

  /** Blobs {image, mask} for the server; mask null = all of the picture may change. */
  async parts() {
    const { image, mask } = compose(this.picture, this.strokes, this.margins);
    const keepsFile = this.blob !== null && !this.isGrown; // its bytes as they are: nothing can be lost
    return {
      image: keepsFile ? this.blob : await image.convertToBlob({ type: "image/png" }),
      mask: mask && (await mask.convertToBlob({ type: "image/png" })),
    };
  }

  /** Grow a side to about so many px: a multiple of the unit that the model allows. */
  grow(side, pixels) {
    const across = side === "left" || side === "right";
    const others = (across ? this.width : this.height) - this.margins[side];
    const longest = Math.min(this.maxSide, this.maxArea / (across ? this.height : this.width));
    const most = Math.max(0, Math.floor((longest - others) / this.unit));
    const units = Math.max(0, Math.min(most, Math.round(pixels / this.unit) || 0));
    this.margins[side] = units * this.unit;
    this.refresh();
  }

  undo() {
    this.strokes.undo();
    this.refresh();
  }

  clear() {
    this.strokes.clear();
    this.refresh();
  }

  refresh() {
    this.canvas.style.aspectRatio = `${this.width} / ${this.height}`;
    this.canvas.parentElement.style.setProperty("--shape", String(this.width / this.height));
    this.draw();
    this.changed();
  }

  get scale() {
    return this.canvas.clientWidth / this.width;
  }

  pointOf(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = (event.clientX - box.left) / this.scale - this.margins.left;
    return [x, (event.clientY - box.top) / this.scale - this.margins.top];
  }

  press(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.paintAt(this.pointOf(event));
  }

  move(event) {
    if (!event.isPrimary) return;
    const moves = event.getCoalescedEvents?.() ?? [];
    for (const each of moves.length ? moves : [event]) {
      if (this.isPainting) this.strokes.extend(...this.pointOf(each));
    }
    this.place(this.pointOf(event));
  }

  paintAt(point) {
    this.isPainting = true;
    this.strokes.begin(this.erase, this.size, ...point);
    this.place(point);
  }

  release() {
    if (!this.isPainting) return;
    this.isPainting = false;
    this.changed();
  }

  place(point) {
    this.cursor = point;
    this.draw();
  }

  keyDown(event) {
    if (!this.picture || event.altKey) return;
    const { left, top } = this.margins;
    const at = this.cursor ?? [this.picture.width / 2, this.picture.height / 2];
    const move = MOVES[event.key];
    if ((event.ctrlKey || event.metaKey) && event.key === "z") this.undo();
    else if (event.ctrlKey || event.metaKey) return;
    else if (move) {
      const step = event.shiftKey ? 1 : Math.max(1, this.size / 3);
      const x = Math.min(this.width - left, Math.max(-left, at[0] + move[0] * step));
      const y = Math.min(this.height - top, Math.max(-top, at[1] + move[1] * step));
      if (this.isPainting) this.strokes.extend(x, y);
      this.place([x, y]);
    } else if (event.key === " ") {
      if (!event.repeat) this.paintAt(at);
    } else if (event.key === "e") {
      this.erase = !this.erase;
      this.refresh();
    } else if (event.key === "[" || event.key === "]") {
      this.size = Math.max(2, Math.round(this.size * (event.key === "[" ? 0.8 : 1.25)));
      this.refresh();
    } else return;
    event.preventDefault();
  }

  /** Drag an edge outwards; the scale of the drag's start holds until its end. */
  drag(event, handle) {
    event.preventDefault();
    const { side } = handle.dataset;
    const across = side === "left" || side === "right";
    const sign = side === "left" || side === "top" ? -1 : 1;
    const start = { at: across ? event.clientX : event.clientY, margin: this.margins[side], scale: this.scale };
    const follow = (next) => {
      const moved = (across ? next.clientX : next.clientY) - start.at;
      this.grow(side, start.margin + (sign * moved) / start.scale);
    };
    const stop = new AbortController();
    handle.setPointerCapture(event.pointerId);
    handle.addEventListener("pointermove", follow, stop);
    for (const kind of ["pointerup", "pointercancel"]) handle.addEventListener(kind, () => stop.abort(), stop);
  }

  draw() {
    const { canvas, picture } = this;
    if (!picture || !canvas.clientWidth) return;
    const scale = this.scale * Math.min(devicePixelRatio, 1536 / canvas.clientWidth);
    canvas.width = Math.round(this.width * scale);
    canvas.height = Math.round(this.height * scale);
    const context = canvas.getContext("2d");
    const style = getComputedStyle(canvas);
    drawMargins(context, this.unit * scale, [style.getPropertyValue("--tile-1"), style.getPropertyValue("--tile-ground")]);
    context.imageSmoothingQuality = "high";
    context.setTransform(scale, 0, 0, scale, this.margins.left * scale, this.margins.top * scale);
    context.drawImage(picture, 0, 0);
    const layer = new OffscreenCanvas(canvas.width, canvas.height);
    const above = layer.getContext("2d");
    above.setTransform(context.getTransform());
    this.strokes.paint(above, style.getPropertyValue("--brush"));
    context.resetTransform();
    context.globalAlpha = 0.62;
    context.drawImage(layer, 0, 0);
    context.globalAlpha = 1;
    if (this.cursor) this.drawCursor(context, scale);
  }

  drawCursor(context, scale) {
    const [x, y] = this.cursor;
    const center = [(x + this.margins.left) * scale, (y + this.margins.top) * scale];
    for (const [width, color] of [[3, "#0009"], [1.5, "#fff"]]) {
      Object.assign(context, { lineWidth: width * devicePixelRatio, strokeStyle: color });
      context.setLineDash(this.erase ? [6, 4] : []);
      context.beginPath();
      context.arc(...center, Math.max(2, (this.size / 2) * scale), 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

/** Tiles where nothing is yet. */
function drawMargins(context, side, [color, ground]) {
  const { width, height } = context.canvas;
  context.fillStyle = ground;
  context.fillRect(0, 0, width, height);
  context.fillStyle = color;
  const gap = side * 0.035;
  for (let y = 0; y < height; y += side) {
    for (let x = 0; x < width; x += side) {
      context.beginPath();
      context.roundRect(x + gap, y + gap, side - 2 * gap, side - 2 * gap, side * 0.16);
      context.fill();
    }
  }
}
