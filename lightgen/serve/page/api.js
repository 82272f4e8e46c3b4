// The server's API: models, and pictures as a stream of events. Addresses are relative, so that the page also
// works below a path of a proxy.

const KEY = "lightgen.key";

/** What the server answered instead of a picture, in one line. */
export class ApiError extends Error {
  constructor(status, message, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** Keep the API key for this tab alone. */
export function keepKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** The server's models, each {id, lightgen: {unit, default_size, max_side, presets}}. */
export async function listModels() {
  const response = await ask("v1/models", {});
  return (await response.json()).data;
}

/** Events of drawing pictures, each {type, index, ...}; of one that failed, {type: "error", index, message}. */
export async function* draw(settings, signal) {
  const body = JSON.stringify({ ...settings, stream: true, progress: true });
  const headers = { "Content-Type": "application/json" };
  yield* eventsOf(await ask("v1/images/generations", { method: "POST", headers, body, signal }));
}

/** Events of changing a picture; `mask` is null where all of it may change. */
export async function* edit(settings, image, mask, signal) {
  const body = new FormData();
  body.append("image", image, "image.png");
  if (mask) body.append("mask", mask, "mask.png");
  for (const [name, value] of Object.entries({ ...settings, stream: true, progress: true })) {
    body.append(name, String(value));
  }
  yield* eventsOf(await ask("v1/images/edits", { method: "POST", body, signal }));
}

/** Which tokens are decoded by now, 0 or 1 each, row by row. */
export function knownTokens(progress) {
  const [rows, columns] = progress.grid;
  const bytes = bytesOf(progress.known);
  return Uint8Array.from({ length: rows * columns }, (_, i) => (bytes[i >> 3] >> (7 - (i & 7))) & 1);
}

/** Blob of a picture in base64. */
export function pictureOf(base64, type = "image/png") {
  return new Blob([bytesOf(base64)], { type });
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

async function ask(path, options) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server does not answer.");
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

async function errorOf(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    message = `The server answered ${response.status}.`;
  }
  const wait = Number(response.headers.get("Retry-After"));
  return new ApiError(response.status, String(message), Number.isFinite(wait) ? Math.ceil(wait) : 0);
}

async function* eventsOf(response) {
  for await (const { event, data } of serverEvents(response.body)) {
    if (data === "[DONE]") return;
    const content = JSON.parse(data);
    const type = content.type || event;
    if (event === "error" || type === "error") {
      const message = content.error?.message || content.message || "The server could not finish.";
      if (!Number.isInteger(content.index)) throw new ApiError(500, message);
      yield { type: "error", index: content.index, message };
    } else {
      yield { ...content, type };
    }
  }
}

/** Server-sent events {event, data} of a stream of bytes, however it is cut. */
export async function* serverEvents(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = "message";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          event = "message";
          data = [];
        } else if (line.startsWith("event:")) {
          event = line.slice(6).trim();
        } else if (line.startsWith("data:")) {
          data.push(line.slice(line[5] === " " ? 6 : 5));
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
