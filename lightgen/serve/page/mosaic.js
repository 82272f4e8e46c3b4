// A picture that opens up: tokens not decoded yet are tiles that shimmer in the colours around them; each opens
// over the newest preview as soon as that shows it.

const OPENING_MS = 520;
const still = matchMedia("(prefers-reduced-motion: reduce)");

/** Draws one picture while its tokens are decoded. */
export class Mosaic {
  /** `unit` is how many px of the picture a token covers. */
  constructor(canvas, width, height, unit) {
    this.canvas = canvas;
    this.size = [width, height];
    this.unit = unit;
    this.bitmap = null;
    this.frame = 0;
    this.begun = performance.now();
    this.lay(Math.ceil(height / unit), Math.ceil(width / unit));
    canvas.style.aspectRatio = `${width} / ${height}`;
  }

  /** Forget everything and begin with a grid of closed tiles. */
  lay(rows, columns) {
    const count = rows * columns;
    this.grid = [rows, columns];
    this.known = new Uint8Array(count);
    this.opened = new Float64Array(count).fill(Infinity); // when each tile began to open
    this.tint = null;
    this.done = null;
  }

  /** Tokens known by now, 0 or 1 each. */
  mark(grid, known) {
    if (grid[0] !== this.grid[0] || grid[1] !== this.grid[1]) this.lay(...grid);
    this.known = known;
    this.canvas.dataset.known = `${known.reduce((sum, each) => sum + each, 0)}/${known.length}`;
  }

  /** A newer preview, in which the tokens of `known` can be seen. */
  show(bitmap, known) {
    this.bitmap?.close();
    this.bitmap = bitmap;
    const now = performance.now();
    for (let i = 0; i < known.length; i += 1) {
      if (known[i] && this.opened[i] === Infinity) this.opened[i] = now + 160 * scatter(i);
    }
    this.tint = spread(meanColors(bitmap, this.grid), known, this.grid);
    this.canvas.dataset.shown = String(known.reduce((sum, each) => sum + each, 0));
  }

  /** Begin with a picture of which some tokens are given; those are open at once. */
  begin(bitmap, given) {
    this.show(bitmap, given);
    this.known = given;
    given.forEach((each, i) => each && (this.opened[i] = -Infinity));
  }

  /** The whole picture; resolves once all tiles are open. */
  finish(bitmap) {
    const all = new Uint8Array(this.known.length).fill(1);
    this.mark(this.grid, all);
    this.show(bitmap, all);
    return new Promise((resolve) => {
      this.done = resolve;
      if (!this.frame) this.run();
      setTimeout(resolve, 3 * OPENING_MS); // a hidden tab draws no frames
    });
  }

  /** Draw until it is stopped or finished. */
  run() {
    const step = () => {
      const isOpen = this.draw(performance.now());
      if (this.done && (isOpen || still.matches)) {
        this.stop();
        this.done();
      } else {
        this.frame = requestAnimationFrame(step);
      }
    };
    this.frame = requestAnimationFrame(step);
  }

  stop() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
  }

  /** Draw the picture as of a time; returns whether every tile is open. */
  draw(now) {
    const { canvas } = this;
    const wide = Math.max(1, Math.min(1536, Math.round(canvas.clientWidth * devicePixelRatio)));
    const tall = Math.max(1, Math.round((wide * this.size[1]) / this.size[0]));
    if (canvas.width !== wide || canvas.height !== tall) Object.assign(canvas, { width: wide, height: tall });
    const context = canvas.getContext("2d");
    const colors = paletteOf(canvas);
    context.fillStyle = css(colors.ground);
    context.fillRect(0, 0, wide, tall);
    context.imageSmoothingQuality = "high";
    if (this.bitmap) context.drawImage(this.bitmap, 0, 0, wide, tall);
    const side = (wide * this.unit) / this.size[0];
    const seconds = still.matches ? 0 : (now - this.begun) / 1000;
    const closed = [];
    for (let i = 0; i < this.known.length; i += 1) {
      const share = still.matches ? Number(this.opened[i] < Infinity) : (now - this.opened[i]) / OPENING_MS;
      if (share >= 1) continue;
      const ease = share > 0 ? share * share * (3 - 2 * share) : 0;
      closed.push({ i, ease, x: (i % this.grid[1]) * side, y: Math.floor(i / this.grid[1]) * side, side });
    }
    this.cover(context, closed, colors);
    for (const tile of closed) this.drawTile(context, tile, colors, seconds);
    context.globalAlpha = 1;
    return closed.length === 0;
  }

  /** A colour of a tile, mixed with what is known around it. */
  tinted(color, i, share) {
    return this.tint ? mix(color, this.tint.subarray(3 * i, 3 * i + 3), share * this.tint.weight[i]) : color;
  }

  /** Hide what the preview shows below closed tiles, and a pixel around, where smoothing mixes it in. */
  cover(context, closed, colors) {
    const more = Math.min(this.canvas.width / this.size[0], closed.length ? closed[0].side * 0.1 : 0);
    for (const { i, x, y, side, ease } of closed) {
      context.globalAlpha = 1 - ease;
      context.fillStyle = css(this.tinted(colors.ground, i, 0.3));
      context.fillRect(x - more, y - more, side + 2 * more, side + 2 * more);
    }
  }

  /** One tile that is open to a share in [0, 1). */
  drawTile(context, { i, ease, x, y, side }, colors, seconds) {
    let color = shimmer(Math.floor(i / this.grid[1]), i % this.grid[1], seconds, colors);
    color = this.tinted(color, i, 1);
    if (this.known[i]) color = mix(color, colors.glow, 0.3);
    const gap = Math.max(0.5, side * 0.035);
    const inset = gap + (side / 2 - gap) * ease * 0.55;
    context.globalAlpha = 1 - ease;
    context.fillStyle = css(color);
    context.beginPath();
    context.roundRect(x + inset, y + inset, side - 2 * inset, side - 2 * inset, side * (0.16 + 0.3 * ease));
    context.fill();
  }
}

/** Colours of the theme as [r, g, b]. */
function paletteOf(canvas) {
  const style = getComputedStyle(canvas);
  const color = (name) => {
    const hex = parseInt(style.getPropertyValue(name).trim().slice(1), 16);
    return [hex >> 16, (hex >> 8) & 255, hex & 255];
  };
  return {
    ground: color("--tile-ground"),
    glow: color("--tile-glow"),
    tiles: [color("--tile-1"), color("--tile-2"), color("--tile-3")],
  };
}

/** Colour of a closed tile: slow waves of the theme's three tile colours. */
function shimmer(row, column, seconds, { tiles, glow }) {
  const wave = Math.sin(column * 0.7 + seconds * 1.1) + Math.sin(row * 0.9 - seconds * 0.8);
  const place = (wave + Math.sin((row + column) * 0.5 + seconds * 0.6)) / 6 + 0.5;
  const color = place < 0.5 ? mix(tiles[0], tiles[1], 2 * place) : mix(tiles[1], tiles[2], 2 * place - 1);
  const spark = Math.sin(seconds * 1.7 + 6.28 * scatter(row * 131 + column));
  return mix(color, glow, 0.1 + 0.1 * spark);
}

/** A number in [0, 1) that looks random and belongs to i. */
function scatter(i) {
  const value = Math.sin(i * 12.9898 + 4.1) * 43758.5453;
  return value - Math.floor(value);
}

function mix(one, other, share) {
  return [0, 1, 2].map((i) => one[i] + (other[i] - one[i]) * share);
}

function css([red, green, blue]) {
  return `rgb(${red | 0} ${green | 0} ${blue | 0})`;
}

/** Mean colour of each token's pixels, RGB after RGB. */
function meanColors(bitmap, [rows, columns]) {
  const small = new OffscreenCanvas(columns, rows);
  const context = small.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, columns, rows);
  const { data } = context.getImageData(0, 0, columns, rows);
  return Float32Array.from({ length: rows * columns * 3 }, (_, i) => data[4 * Math.floor(i / 3) + (i % 3)]);
}

/** Colours of known tokens carried over to their unknown neighbours; `weight` says how much each is worth. */
function spread(colors, known, [rows, columns]) {
  const weight = Float32Array.from(known, (each) => each);
  for (let pass = 0; pass < 3; pass += 1) {
    const before = weight.slice();
    for (let i = 0; i < known.length; i += 1) {
      if (before[i] > 0) continue;
      const column = i % columns;
      const beside = [column > 0 ? i - 1 : -1, column < columns - 1 ? i + 1 : -1, i - columns, i + columns];
      const near = beside.filter((j) => j >= 0 && j < rows * columns && before[j] > 0);
      if (!near.length) continue;
      weight[i] = 0.62 * (near.reduce((sum, j) => sum + before[j], 0) / near.length);
      for (let k = 0; k < 3; k += 1) {
        colors[3 * i + k] = near.reduce((sum, j) => sum + colors[3 * j + k], 0) / near.length;
      }
    }
  }
  colors.weight = weight;
  return colors;
}
