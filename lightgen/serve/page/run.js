// A run: one or two requests whose pictures appear together on the stage.

import { knownTokens, pictureOf } from "./api.js";
import { Figure } from "./figure.js";
import { readFactsOf } from "./png.js";
import { untouched } from "./strokes.js";

/** Draws requests; one run at a time. */
export class Run {
  /** `page` has the elements results, progress, bar, counted and live; `act` is what figures call. */
  constructor(page, act) {
    Object.assign(this, { page, act, figures: [], abort: null, begun: 0, told: 0 });
  }

  get isRunning() {
    return this.abort !== null;
  }

  /** What pictures failed of, one message each. */
  get failures() {
    return this.figures.map((figure) => figure.failure).filter(Boolean);
  }

  cancel() {
    this.abort?.abort();
  }

  /**
   * Records of the finished pictures, in their order; those that failed say so themselves. Each request is {settings, events, width, height, unit,
   * label, parts}, where events(signal) gives what the server tells. Throws what the server refused.
   */
  async draw(requests) {
    this.abort = new AbortController();
    this.begun = performance.now();
    this.told = -1;
    const { results, progress } = this.page;
    results.replaceChildren();
    this.figures = [];
    const rows = requests.map((request) => {
      const row = Array.from({ length: request.settings.n }, () => new Figure(request, this.act));
      this.figures.push(...row);
      return row;
    });
    results.dataset.count = String(this.figures.length);
    results.append(...this.figures.map((figure) => figure.root));
    for (const figure of this.figures) figure.mosaic.run();
    progress.hidden = false;
    const clock = setInterval(() => this.tell(), 100);
    this.tell();
    try {
      const drawn = await Promise.all(requests.map((request, i) => this.follow(request, rows[i])));
      return drawn.flat();
    } catch (error) {
      this.abort.abort(); // the other request of two
      for (const figure of this.figures) if (!figure.isDone) figure.remove();
      throw error;
    } finally {
      clearInterval(clock);
      this.abort = null;
      progress.hidden = true;
    }
  }

  /** Follow one request to its end. */
  async follow(request, row) {
    const { settings } = request;
    const records = [];
    const endings = [];
    if (request.parts) await Promise.all(row.map((figure) => begin(figure, request)));
    for await (const event of request.events(this.abort.signal)) {
      const figure = row[event.index ?? 0];
      if (!figure) continue;
      if (event.type.endsWith(".completed")) {
        const blob = pictureOf(event.b64_json, "image/png");
        const index = event.index ?? 0;
        const seed = event.seed ?? settings.seed + index;
        const record = {
          created: Date.now(),
          blob,
          settings: { ...settings, n: 1, seed },
          facts: await readFactsOf(blob),
          parts: request.parts ?? null,
        };
        records[index] = record;
        endings.push(figure.complete(record));
      } else if (event.type === "error") {
        figure.fail(event.message);
      } else if (event.progress) {
        const { progress } = event;
        figure.ahead = 0;
        await figure.follow(progress, knownTokens(progress), event.b64_json && pictureOf(event.b64_json, "image/png"));
      } else if (Number.isFinite(event.position)) {
        figure.ahead = event.position;
      }
    }
    await Promise.all(endings);
    if (row.some((figure) => !figure.isDone)) throw new Error("The server stopped before the end.");
    return records.filter(Boolean);
  }

  /** Say how far it is: often to the eye, at every quarter to the ear. */
  tell() {
    const { bar, counted, live } = this.page;
    const sum = (name) => this.figures.reduce((total, figure) => total + figure[name], 0);
    const [done, total] = [sum("iteration"), sum("total")];
    const share = total ? done / total : 0;
    const seconds = ((performance.now() - this.begun) / 1000).toFixed(1);
    const ahead = Math.min(...this.figures.map((figure) => figure.ahead));
    bar.value = share;
    if (total) {
      const one = this.figures.reduce((most, figure) => (figure.iteration > most.iteration ? figure : most));
      counted.textContent = `iteration ${one.iteration} of ${one.total} · ${seconds} s`;
    } else {
      const place = ahead === 1 ? "1 picture is" : `${ahead} pictures are`;
      counted.textContent = ahead > 0 ? `waiting · ${place} before yours · ${seconds} s` : `starting · ${seconds} s`;
    }
    const quarter = total ? Math.floor(share * 4) : -0.5 - ahead;
    if (quarter === this.told) return;
    this.told = quarter;
    if (total) live.textContent = share < 1 ? `${Math.round(share * 100)} percent drawn` : "Almost done";
    else if (ahead > 0) live.textContent = `Waiting, ${ahead} before yours`;
  }
}

/** An edit begins with its picture, open where nothing is painted. */
async function begin(figure, { parts, unit }) {
  const given = await untouched(parts, unit);
  figure.mosaic.begin(await createImageBitmap(parts.image), given);
}
