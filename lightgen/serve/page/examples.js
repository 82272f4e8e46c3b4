// Prompts to begin with, of the world that the shipped model knows.

const EXAMPLES = [
  "a photo of a red apple left of a blue car",
  "a photo of a boat at night",
  "a photo of a blue car in the snow",
  "three pink umbrellas on the beach",
  "a photo of a yellow bird on green grass",
  "a photo of a pizza",
];

/** Offer examples in an element; one that is chosen goes into the prompt. */
export function offerExamples(element, prompt) {
  const buttons = EXAMPLES.map((text) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    button.addEventListener("click", () => {
      prompt.value = text;
      element.hidden = true;
      prompt.focus();
    });
    return button;
  });
  element.replaceChildren(...buttons);
  prompt.addEventListener("input", () => (element.hidden = true));
  element.hidden = false;
}
