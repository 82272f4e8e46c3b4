// A mask as the strokes that made it, in pixels of the picture, so that growing and undoing cost nothing.

/** Strokes of a brush and an eraser; painted is what shall change. */
export class Strokes {
  constructor() {
    this.list = [];
  }

  begin(erase, size, x, y) {
    this.list.push({ erase, size, points: [[x, y]] });
  }

  extend(x, y) {
    this.list.at(-1)?.points.push([x, y]);
  }

  undo() {
    this.list.pop();
  }

  /** Take everything away; one undo brings it back. */
  clear() {
    if (this.list.length) this.list.push({ erase: true, size: 0, points: [] });
  }

  /** Paint in a colour on a transparent canvas whose origin is the picture's. */
  paint(context, color) {
    context.save();
    Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: color });
    for (const { erase, size, points } of this.list) {
      if (!points.length) {
        clearAll(context);
        continue;
      }
      context.globalCompositeOperation = erase ? "destination-out" : "source-over";
      context.lineWidth = size;
      context.beginPath();
      context.moveTo(...points[0]);
      for (const point of points.length > 1 ? points.slice(1) : points) context.lineTo(...point);
      context.stroke();
    }
    context.restore();
  }
}

function clearAll(context) {
  context.save();
  context.resetTransform();
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  context.restore();
}

/**
 * What the server is sent of a picture: {image, mask} as canvases of the grown size, or mask null where nothing
 * is marked. In the mask white is to be painted, black is kept; margins are white, and transparent in the image.
 */
export function compose(picture, strokes, margins) {
  const width = margins.left + picture.width + margins.right;
  const height = margins.top + picture.height + margins.bottom;
  const image = new OffscreenCanvas(width, height);
  image.getContext("2d").drawImage(picture, margins.left, margins.top);
  const mask = new OffscreenCanvas(width, height);
  const context = mask.getContext("2d", { willReadFrequently: true });
  context.translate(margins.left, margins.top);
  strokes.paint(context, "#fff");
  const painted = context.getImageData(0, 0, width, height);
  const own = image.getContext("2d").getImageData(0, 0, width, height).data;
  let isMarked = false;
  for (let i = 0; i < own.length; i += 4) {
    // the picture's own holes are to be painted too; half a pixel of brush is none
    const white = painted.data[i + 3] >= 128 || own[i + 3] < 128 ? 255 : 0;
    isMarked ||= white > 0;
    painted.data.fill(white, i, i + 3);
    painted.data[i + 3] = 255;
  }
  context.putImageData(painted, 0, 0);
  return { image, mask: isMarked ? mask : null };
}

/** Which tokens of a picture its mask leaves as they are, 0 or 1 each. */
export async function untouched({ image, mask }, unit) {
  const bitmap = await createImageBitmap(mask ?? image);
  const { width, height } = bitmap;
  const columns = Math.ceil(width / unit);
  const given = new Uint8Array(columns * Math.ceil(height / unit));
  if (!mask) return given;
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  given.fill(1);
  for (let i = 0; i < width * height; i += 1) {
    if (data[4 * i] > 127) given[Math.floor(i / width / unit) * columns + Math.floor((i % width) / unit)] = 0;
  }
  return given;
}
