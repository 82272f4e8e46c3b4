// Dialogs that ask one thing; each traps the focus and gives it back, as dialogs do.

/** Whether a dialog was answered with yes. */
export async function isAgreed(dialog) {
  const closed = new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  dialog.returnValue = "";
  dialog.showModal();
  await closed;
  return dialog.returnValue === "yes";
}

/** A text that a dialog asks for, or null. */
export async function askText(dialog, input) {
  const text = (await isAgreed(dialog)) ? input.value.trim() : null;
  input.value = "";
  return text;
}
