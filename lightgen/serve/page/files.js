// Pictures that come by drop, paste or choice: their settings are read, or they are offered for editing.

import { readFactsOf } from "./png.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];

/** Receive files all over the page; `act` has restore(facts), openEditor(blob) and say(text). */
export function receiveFiles(page, act) {
  let offered = null;
  let depth = 0;

  async function receive(file) {
    if (!file) return;
    if (!TYPES.includes(file.type)) {
      act.say(`${file.name}: got ${file.type || "no picture"}, allowed: PNG, JPEG or WebP`);
      return;
    }
    act.say("");
    offered = file;
    const facts = await readFactsOf(file);
    if (facts) act.restore(facts);
    page.said.textContent = facts ? `Settings of ${file.name} are in the form.` : `${file.name} holds no settings.`;
    page.notice.hidden = false;
    if (!facts) page.agree.focus();
  }

  page.open.addEventListener("click", () => page.file.click());
  page.file.addEventListener("change", () => {
    receive(page.file.files[0]);
    page.file.value = "";
  });
  page.agree.addEventListener("click", () => act.openEditor(offered));
  page.dismiss.addEventListener("click", () => {
    page.notice.hidden = true;
    page.prompt.focus();
  });
  window.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((each) => TYPES.includes(each.type));
    if (file) receive(file);
  });
  const isFiles = (event) => event.dataTransfer?.types.includes("Files");
  window.addEventListener("dragenter", (event) => {
    if (isFiles(event)) depth += 1;
    page.drop.hidden = depth === 0;
  });
  window.addEventListener("dragleave", (event) => {
    if (isFiles(event)) depth = Math.max(0, depth - 1);
    page.drop.hidden = depth === 0;
  });
  window.addEventListener("dragover", (event) => isFiles(event) && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!isFiles(event)) return;
    event.preventDefault();
    depth = 0;
    page.drop.hidden = true;
    receive(event.dataTransfer.files[0]);
  });
}
