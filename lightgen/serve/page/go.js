// The button that draws, the one that cancels in its place, and the line beside them that says what went wrong.

/** Exactly one of the two buttons is shown. */
export class Go {
  constructor({ generate, cancel, verb, error }) {
    Object.assign(this, { generate, cancel, verb, error, word: "Generate", clock: 0 });
  }

  /** Whether drawing may begin. */
  get isOpen() {
    return !this.generate.hidden && !this.generate.disabled;
  }

  /** What the button does, as a word on it. */
  call(word) {
    this.word = word;
    if (!this.generate.disabled) this.verb.textContent = word;
  }

  /** Show the one or the other; the focus stays where it was. */
  busy(isBusy) {
    const hadFocus = [this.generate, this.cancel].includes(document.activeElement);
    this.generate.hidden = isBusy;
    this.cancel.hidden = !isBusy;
    document.body.classList.toggle("busy", isBusy);
    if (hadFocus) (isBusy ? this.cancel : this.generate).focus();
    if (isBusy) this.say("");
  }

  /** One line beside the button. */
  say(text) {
    this.error.textContent = text;
  }

  /** Stay closed for so many seconds, and count them down. */
  wait(seconds, text) {
    this.say(text);
    this.generate.disabled = true;
    clearInterval(this.clock);
    const end = performance.now() + 1000 * seconds;
    const tick = () => {
      const left = Math.ceil((end - performance.now()) / 1000);
      this.verb.textContent = `Again in ${left} s`;
      if (left > 0) return;
      clearInterval(this.clock);
      this.generate.disabled = false;
      this.call(this.word);
      this.say("");
    };
    this.clock = setInterval(tick, 250);
    tick();
  }
}
