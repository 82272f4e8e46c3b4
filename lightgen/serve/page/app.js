// The page: its form starts runs, their pictures go into the history, files that are dropped come back as settings.

import { ApiError, draw, edit, keepKey, listModels } from "./api.js";
import { Comparison } from "./compare.js";
import { askText, isAgreed } from "./dialogs.js";
import { Editing } from "./editing.js";
import { offerExamples } from "./examples.js";
import { receiveFiles } from "./files.js";
import { Gallery } from "./gallery.js";
import { Go } from "./go.js";
import { Mosaic } from "./mosaic.js";
import { Run } from "./run.js";
import * as forms from "./settings.js";
import { Viewer, fileName } from "./viewer.js";

const MAX_COUNT = 8;
const PREVIEWS = 16; // partial images of one picture
const PREVIEWS_OF_MANY = 6;

const page = Object.fromEntries([...document.querySelectorAll("[id]")].map((element) => [element.id, element]));
const { form } = page;
let models = [];

const go = new Go(page);
const editing = new Editing(page);
const comparison = new Comparison(page);
const gallery = new Gallery(page.gallery, page.stored, page.forget, (record) => viewer.show(record));
const viewer = new Viewer(page, {
  again: vary,
  change: (record) => openEditor(record.blob),
  reuse: (record) => restore({ ...record.settings, ...forms.settingsOf(record.facts ?? {}) }),
  delete: (record) => gallery.remove(record),
  beside: (record, direction) => gallery.beside(record, direction),
});
const run = new Run(page, {
  view: (record) => viewer.show(record),
  vary,
  edit: (record) => openEditor(record.blob),
  save,
});

function modelOf(id) {
  return models.find((model) => model.id === id);
}

/** Requests {settings, parts, label} of the form as it stands. */
async function requestsOfForm() {
  const isLocked = page.lock.getAttribute("aria-pressed") === "true" && page.seed.value !== "";
  const seed = isLocked ? Number(page.seed.value) : forms.rollSeed();
  const settings = { ...forms.readForm(form), seed, model: page.model.value };
  if (editing.isOpen) {
    const { parts, settings: own } = await editing.request();
    return [{ settings: { ...settings, ...own }, parts }];
  }
  const other = page.comparing.hidden ? "" : page.other.value;
  if (!other) return [{ settings }];
  return [settings.model, other].map((model) => ({ settings: { ...settings, n: 1, model }, label: model }));
}

/** A request as a run wants it. */
function prepared({ settings, parts = null, label = "" }) {
  const [width, height] = settings.size.split("x").map(Number);
  const partial_images = settings.n === 1 ? PREVIEWS : PREVIEWS_OF_MANY;
  const events = (signal) => {
    const asked = { ...settings, partial_images };
    return parts ? edit(asked, parts.image, parts.mask, signal) : draw(asked, signal);
  };
  return { settings, parts, label, width, height, unit: modelOf(settings.model).lightgen.unit, events };
}

/** Draw requests, and put what came into the history. */
async function start(requests) {
  if (!go.isOpen || run.isRunning) return;
  const { seed } = requests[0].settings;
  page.seed.value = String(seed);
  forms.keepForm(form);
  comparison.hide();
  page.examples.hidden = true;
  go.busy(true);
  const drawing = run.draw(requests.map(prepared));
  arrange();
  if (page.results.getBoundingClientRect().top > innerHeight / 2) page.stage.scrollIntoView();
  try {
    const records = await drawing;
    for (const record of records.slice().reverse()) await gallery.add(record);
    const many = `${records.length} pictures are done`;
    page.live.textContent = { 0: "", 1: "The picture is done" }[records.length] ?? many;
    sayFailures(run.failures, records.length);
    if (requests.length === 2 && records.length === 2) comparison.show();
  } catch (error) {
    await fail(error, requests);
  } finally {
    go.busy(run.isRunning);
    arrange();
  }
}

/** Say how many pictures failed, and of what. */
function sayFailures([first, ...more], done) {
  if (!first) return;
  const total = done + 1 + more.length;
  go.say(total === 1 ? first : `${1 + more.length} of ${total} pictures failed: ${first}`);
}

/** Say what went wrong; a key that was asked for tries again. */
async function fail(error, requests) {
  if (error.name === "AbortError") page.live.textContent = "Cancelled";
  else if (error instanceof ApiError && error.status === 401) {
    if (await unlock()) setTimeout(() => start(requests));
    else go.say(error.message);
  } else if (error.retryAfter > 0) go.wait(error.retryAfter, error.message);
  else go.say(error.message || "Something went wrong in this page.");
}

/** Whether a key was given and lets us in. */
async function unlock() {
  const key = await askText(page.ask, page.key);
  if (key === null) return false;
  keepKey(key);
  await begin();
  return models.length > 0;
}

/** Show of the stage what there is: the pictures of a run, the editor, or an empty mosaic. */
function arrange() {
  const hasResults = page.results.childElementCount > 0;
  page.idle.hidden = hasResults || editing.isOpen;
  page.editor.hidden = !editing.isOpen || hasResults;
  page.back.hidden = !editing.isOpen || !hasResults || run.isRunning;
  page.sizing.hidden = editing.isOpen;
  page.free.hidden = editing.isOpen || form.size.value !== forms.FREE;
  page.comparing.hidden = editing.isOpen || models.length < 2;
  go.call(editing.isOpen ? "Paint" : "Generate");
}

/** Take the pictures of the last run off the stage. */
function clearStage() {
  page.results.replaceChildren();
  comparison.hide();
  arrange();
}

/** Begin to edit a picture on the stage. */
async function openEditor(blob) {
  run.cancel();
  try {
    const isSmaller = await editing.open(blob, modelOf(page.model.value).lightgen);
    go.say(isSmaller ? "The picture was made smaller, to what the model can paint." : "");
  } catch {
    go.say("This file is no picture that can be opened.");
    return;
  }
  page.notice.hidden = true;
  clearStage();
  page.mask.focus({ preventScroll: true });
  page.stage.scrollIntoView({ block: "nearest" });
}

function closeEditor() {
  editing.close();
  clearStage();
  page.prompt.focus();
}

/** The same with another seed. */
function vary(record) {
  const settings = { ...record.settings, n: 1, seed: forms.rollSeed() };
  if (!modelOf(settings.model)) settings.model = page.model.value;
  start([{ settings, parts: record.parts }]);
  page.stage.scrollIntoView({ block: "nearest" });
}

function save(record) {
  const url = URL.createObjectURL(record.blob);
  Object.assign(document.createElement("a"), { href: url, download: fileName(record) }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Settings back into the form; their seed is kept. */
function restore(settings) {
  if (modelOf(settings.model)) chooseModel(settings.model);
  forms.fillForm(form, settings);
  page.seed.value = String(settings.seed ?? "");
  setLock(settings.seed !== undefined);
  if (forms.hasExtras(settings)) setMore(true);
  page.examples.hidden = true;
  arrange();
  page.prompt.focus();
}

function setLock(isLocked) {
  page.lock.setAttribute("aria-pressed", String(isLocked));
  page.lock.querySelector("use").setAttribute("href", isLocked ? "#i-lock" : "#i-unlock");
}

function setMore(isOpen) {
  page.more.setAttribute("aria-expanded", String(isOpen));
  page.extras.hidden = !isOpen;
}

function chooseModel(id) {
  page.model.value = id;
  forms.offer(form, modelOf(id));
  const others = models.filter((model) => model.id !== id).map((model) => new Option(model.id, model.id));
  const before = page.other.value;
  page.other.replaceChildren(new Option("nothing", ""), ...others);
  page.other.value = others.some((option) => option.value === before) ? before : "";
  arrange();
}

/** Ask for the models; without them nothing can be drawn. */
async function begin() {
  try {
    models = await listModels();
  } catch (error) {
    if (error.status !== 401 || !(await unlock())) go.say(error.message);
    return;
  }
  go.say("");
  page.model.replaceChildren(...models.map((model) => new Option(model.id, model.id)));
  chooseModel(page.model.value);
}

function drawIdle() {
  const still = new Mosaic(page.still, 9, 9, 1);
  still.begun = performance.now() - 2000;
  still.draw(performance.now());
}

async function submit(event) {
  event.preventDefault();
  if (!models.length) await begin();
  if (!models.length) return;
  if (page.prompt.value.trim()) start(await requestsOfForm());
  else {
    go.say("Write a prompt first.");
    page.prompt.focus();
  }
}

function pressKey(event) {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") run.cancel();
  else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    form.requestSubmit();
  }
}

function bind() {
  form.addEventListener("submit", submit);
  document.addEventListener("keydown", pressKey);
  page.cancel.addEventListener("click", () => run.cancel());
  window.addEventListener("pagehide", () => run.cancel()); // a page that is kept for "back" would go on asking
  page.model.addEventListener("change", () => chooseModel(page.model.value));
  form.size.addEventListener("change", () => forms.showFree(form));
  page.dice.addEventListener("click", () => {
    page.seed.value = String(forms.rollSeed());
    setLock(true);
  });
  page.lock.addEventListener("click", () => setLock(page.lock.getAttribute("aria-pressed") !== "true"));
  page.seed.addEventListener("input", () => setLock(page.seed.value !== ""));
  page.more.addEventListener("click", () => setMore(page.extras.hidden));
  page.back.addEventListener("click", clearStage);
  page.close.addEventListener("click", closeEditor);
  page.forget.addEventListener("click", async () => (await isAgreed(page.sure)) && gallery.clear());
  receiveFiles(page, { restore: (facts) => restore(forms.settingsOf(facts)), openEditor, say: (text) => go.say(text) });
  new ResizeObserver(drawIdle).observe(page.still);
  new MutationObserver(drawIdle).observe(document.documentElement, { attributeFilter: ["data-theme"] });
}

form.count.replaceChildren(...Array.from({ length: MAX_COUNT }, (_, i) => new Option(String(i + 1))));
bind();
await Promise.all([begin(), gallery.load()]);
const kept = forms.keptForm();
if (kept && models.length) forms.fillForm(form, kept);
if (!kept && !gallery.records.size) offerExamples(page.examples, page.prompt);
document.body.dataset.ready = "true";
