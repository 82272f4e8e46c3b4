// Pictures that outlive the tab: an IndexedDB store of bounded number and size.

const NAME = "lightgen";
const STORE = "pictures";
const MAX_PICTURES = 200;
const MAX_BYTES = 64 * 1024 * 1024;

let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/** Result of one request on the store. */
async function ask(mode, work) {
  const database = await open();
  return new Promise((resolve, reject) => {
    const transaction = database.transaction(STORE, mode);
    const request = work(transaction.objectStore(STORE));
    transaction.oncomplete = () => resolve(request.result);
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });
}

function sizeOf({ blob, parts }) {
  return blob.size + (parts?.image.size ?? 0) + (parts?.mask?.size ?? 0);
}

/** All records {id, created, blob, settings, facts, parts}, oldest first. */
export function readAll() {
  return ask("readonly", (store) => store.getAll());
}

/** Keep a record; returns its id and those of the oldest that had to leave for it. */
export async function add(record) {
  const id = await ask("readwrite", (store) => store.add(record));
  const all = await readAll();
  const left = [];
  let bytes = all.reduce((sum, each) => sum + sizeOf(each), 0);
  while (all.length > 1 && (all.length > MAX_PICTURES || bytes > MAX_BYTES)) {
    const oldest = all.shift();
    bytes -= sizeOf(oldest);
    left.push(oldest.id);
    await remove(oldest.id);
  }
  return { id, left };
}

/** Forget one record. */
export function remove(id) {
  return ask("readwrite", (store) => store.delete(id));
}

/** Forget all records. */
export function clear() {
  return ask("readwrite", (store) => store.clear());
}
