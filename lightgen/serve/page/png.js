// What a PNG file says of itself in its iTXt chunks. Nothing here writes PNG files.

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const MAX_TEXT = 1 << 20;

/** Texts by keyword of the uncompressed iTXt chunks in the bytes of a PNG file; none where it is no PNG. */
export function readTexts(bytes) {
  const texts = new Map();
  if (!SIGNATURE.every((value, i) => bytes[i] === value)) return texts;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = SIGNATURE.length;
  while (at + 12 <= bytes.length) {
    const length = view.getUint32(at);
    const kind = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const body = bytes.subarray(at + 8, at + 8 + length);
    if (kind === "IEND" || body.length < length) break;
    if (kind === "iTXt" && length <= MAX_TEXT) {
      const pair = readInternationalText(body);
      if (pair) texts.set(pair[0], pair[1]);
    }
    at += 12 + length;
  }
  return texts;
}

/** [Keyword, text] of an iTXt chunk: keyword 0 compressed method language 0 translation 0 text. */
function readInternationalText(body) {
  const keyEnd = body.indexOf(0);
  if (keyEnd < 1 || body[keyEnd + 1] !== 0) return null;
  const languageEnd = body.indexOf(0, keyEnd + 3);
  const translationEnd = languageEnd < 0 ? -1 : body.indexOf(0, languageEnd + 1);
  if (translationEnd < 0) return null;
  const utf8 = new TextDecoder("utf-8");
  return [utf8.decode(body.subarray(0, keyEnd)), utf8.decode(body.subarray(translationEnd + 1))];
}

/** How lightgen made the picture, from the chunk `lightgen`; null where the file does not say. */
export function readFacts(bytes) {
  const text = readTexts(bytes).get("lightgen");
  if (text === undefined) return null;
  try {
    const facts = JSON.parse(text);
    return facts !== null && typeof facts === "object" && !Array.isArray(facts) ? facts : null;
  } catch {
    return null;
  }
}

/** The same of a blob. */
export async function readFactsOf(blob) {
  return readFacts(new Uint8Array(await blob.arrayBuffer()));
}
