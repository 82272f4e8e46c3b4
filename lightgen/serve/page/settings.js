// Settings of a picture: from the form, into the form, out of a picture's facts.

const NUMBERS = {
  steps: "num_inference_steps",
  guidance: "guidance_scale",
  head: "num_head_steps",
  temperature: "temperature",
};
const KEPT = "lightgen.form";
const MAX_SEED = 2 ** 31;
export const FREE = "free";

/** A seed at random. */
export function rollSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0] % MAX_SEED;
}

/** Sizes [width, height, name] to choose from for a model. */
export function sizesOf({ unit, default_size, max_side: most }) {
  const [width, height] = default_size.split("x").map(Number);
  const whole = (side, factor) => Math.max(1, Math.round((side * factor) / unit)) * unit;
  const sizes = [
    [width, height, "square"],
    [whole(width, 1.25), whole(height, 0.75), "wide"],
    [whole(width, 0.75), whole(height, 1.25), "tall"],
    [whole(width, 1.5), whole(height, 1.5), "large"],
  ];
  return sizes.filter(([wide, tall]) => Math.max(wide, tall) <= most);
}

/** Offer a model's sizes and presets; what was chosen stays where it may. */
export function offer(form, model) {
  const { unit, max_side: most, presets } = model.lightgen;
  const before = form.size.value;
  const sizes = sizesOf(model.lightgen).map(([width, height, name]) => {
    return new Option(`${width} × ${height} ${name}`, `${width}x${height}`);
  });
  form.size.replaceChildren(...sizes, new Option("free …", FREE));
  for (const side of [form.width, form.height]) Object.assign(side, { min: unit, max: most, step: unit });
  if ([...form.size.options].some((option) => option.value === before)) form.size.value = before;
  showFree(form);
  for (const radio of form.elements.namedItem("preset")) {
    radio.disabled = !presets.includes(radio.value);
  }
}

/** Show width and height where the size is free. */
export function showFree(form) {
  const isFree = form.size.value === FREE;
  form.querySelector("#free").hidden = !isFree;
  if (isFree && !form.width.value) {
    [form.width.value, form.height.value] = form.size.options[0].value.split("x");
  }
}

/** What the form asks for, in the API's words, without seed and model. */
export function readForm(form) {
  const size = form.size.value === FREE ? `${form.width.value}x${form.height.value}` : form.size.value;
  const settings = { prompt: form.prompt.value.trim(), size, n: Number(form.count.value) };
  if (form.negative.value.trim()) settings.negative_prompt = form.negative.value.trim();
  settings.preset = form.preset.value;
  for (const [field, name] of Object.entries(NUMBERS)) {
    if (form[field].value !== "") settings[name] = Number(form[field].value);
  }
  return settings;
}

/** Fill the form with settings in the API's words. */
export function fillForm(form, settings) {
  form.prompt.value = settings.prompt ?? "";
  form.negative.value = settings.negative_prompt ?? "";
  if (settings.size) {
    const offered = [...form.size.options].some((option) => option.value === settings.size);
    form.size.value = offered ? settings.size : FREE;
    [form.width.value, form.height.value] = settings.size.split("x");
    showFree(form);
  }
  form.count.value = String(settings.n ?? 1);
  if (settings.preset) form.preset.value = settings.preset;
  for (const [field, name] of Object.entries(NUMBERS)) form[field].value = settings[name] ?? "";
}

/** Whether settings say more than the form shows at first. */
export function hasExtras(settings) {
  return Boolean(settings.negative_prompt) || Object.values(NUMBERS).some((name) => settings[name] !== undefined);
}

/** Settings in the API's words of what a picture file says of itself. */
export function settingsOf(facts) {
  const settings = {};
  if (typeof facts.prompt === "string") settings.prompt = facts.prompt;
  if (typeof facts.negative_prompt === "string") settings.negative_prompt = facts.negative_prompt;
  if (Number.isSafeInteger(facts.seed) && facts.seed >= 0) settings.seed = facts.seed;
  if (Number.isInteger(facts.width) && Number.isInteger(facts.height)) {
    settings.size = `${facts.width}x${facts.height}`;
  }
  if (["fast", "balanced", "exact"].includes(facts.preset)) settings.preset = facts.preset;
  if (typeof facts.model === "string") settings.model = facts.model;
  const numbers = { ...facts, num_inference_steps: facts.num_inference_steps ?? facts.num_iterations };
  for (const name of Object.values(NUMBERS)) {
    if (Number.isFinite(numbers[name])) settings[name] = numbers[name];
  }
  return settings;
}

/** Keep the form for the next visit. */
export function keepForm(form) {
  localStorage.setItem(KEPT, JSON.stringify(readForm(form)));
}

/** Settings of the last visit, or null. */
export function keptForm() {
  try {
    return JSON.parse(localStorage.getItem(KEPT));
  } catch {
    return null;
  }
}
