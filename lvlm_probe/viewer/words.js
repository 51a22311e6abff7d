// Words in a row, shaded by their scores, to be looked at or picked.

const WORDS_DEFAULTS = { words: [], picked: [], multiple: false, scale: null, label: "words" };
const WARM = [228, 90, 49];
const RED = [197, 62, 61];
const BLUE = [42, 113, 178];

/** A token as it is shown: what is only space stays visible. */
function spelled(text) {
  if (text.trim()) return text.trim();
  return text.includes("\n") ? "⏎" : "␣";
}

function words(element, view, { onPick = null, onHover = null } = {}) {
  return part(element, view, "lv-words", WORDS_DEFAULTS, (state) => {
    let buttons = [];
    let current = 0;
    let drawnAs = null;

    function tint(score, scale) {
      if (score === null || score === undefined) return "";
      const far = Math.max(Math.abs(scale.low), Math.abs(scale.high)) || 1;
      const share = Math.min(Math.abs(score) / far, 1);
      const colour = scale.low < 0 ? (score < 0 ? BLUE : RED) : WARM;
      return css(colour, (0.66 * share).toFixed(3));
    }

    // Without anything to call back, words are no buttons.
    const tag = onPick || onHover ? "button" : "span";

    function button(word) {
      const made = make(tag, `lv-word lv-${word.kind === "answer" ? "answer" : "prompt"}`);
      if (tag === "button") made.type = "button";
      made.textContent = spelled(word.text);
      made.dataset.index = word.index;
      if (word.disabled) made.disabled = true;
      return made;
    }

    function shade(made, word, scale) {
      const score = word.score ?? null;
      made.style.background = tint(score, scale);
      made.removeAttribute("aria-label");
      delete made.dataset.score;
      made.title = score === null ? "" : told(score);
      if (score !== null) {
        made.dataset.score = score;
        if (tag === "button") made.setAttribute("aria-label", `${spelled(word.text)}, ${told(score)}`);
      }
      if (onPick) made.setAttribute("aria-pressed", String(state.view.picked.includes(word.index)));
    }

    function rove(to) {
      const live = buttons.filter((b) => !b.disabled);
      current = Math.min(Math.max(to, 0), live.length - 1);
      live.forEach((b, n) => b.setAttribute("tabindex", n === current ? "0" : "-1"));
      return live[current];
    }

    /** The same words keep their elements, and with them the focus and a click that has begun. */
    const spelling = () => JSON.stringify(state.view.words.map((w) => [w.text, w.index, w.kind, w.disabled]));

    function draw() {
      element.setAttribute("role", "group");
      element.setAttribute("aria-label", state.view.label);
      const scale = scaleOf(state.view.scale, state.view.words.map((w) => w.score ?? null));
      if (spelling() !== drawnAs) {
        drawnAs = spelling();
        buttons = state.view.words.map(button);
        element.replaceChildren(...buttons);
        current = 0;
      }
      state.view.words.forEach((word, n) => shade(buttons[n], word, scale));
      const pressed = buttons.filter((b) => !b.disabled).findIndex((b) => b.getAttribute("aria-pressed") === "true");
      if (tag === "button") rove(element.contains(document.activeElement) || pressed < 0 ? current : pressed);
    }

    /** What is picked after a click: `multiple` true toggles; "extend" does so with Ctrl, and with Shift takes all between. */
    function after(index, { shiftKey, ctrlKey, metaKey }) {
      const { picked, multiple } = state.view;
      if (!multiple || (multiple === "extend" && !shiftKey && !ctrlKey && !metaKey)) return [index];
      if (multiple === "extend" && shiftKey && picked.length) {
        const [first, last] = [Math.min(index, ...picked), Math.max(index, ...picked)];
        return state.view.words.map((word) => word.index).filter((other) => other >= first && other <= last);
      }
      const others = picked.filter((other) => other !== index);
      return others.length < picked.length ? others : [...others, index].sort((a, b) => a - b);
    }

    function pick(index, event) {
      state.view.picked = after(index, event);
      for (const b of buttons) b.setAttribute("aria-pressed", String(state.view.picked.includes(Number(b.dataset.index))));
      onPick(state.view.picked);
    }

    const indexOf = (event) => {
      const found = event.target.closest("button");
      return found && !found.disabled ? Number(found.dataset.index) : null;
    };
    function hover(event) {
      const index = indexOf(event);
      if (index !== null && onHover) onHover(index);
    }

    const listeners = {
      click(event) {
        const index = indexOf(event);
        if (index !== null && onPick) pick(index, event);
      },
      pointerover: hover,
      pointerleave: () => onHover && onHover(null),
      focusin(event) {
        const live = buttons.filter((b) => !b.disabled);
        rove(live.indexOf(event.target));
        hover(event);
      },
      focusout(event) {
        if (onHover && event.relatedTarget && !element.contains(event.relatedTarget)) onHover(null);
      },
      keydown(event) {
        const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
        const ends = { Home: 0, End: buttons.length }[event.key];
        if (step === undefined && ends === undefined) return;
        const next = rove(ends ?? current + step);
        if (next) next.focus();
        event.preventDefault();
      },
    };
    for (const [name, listener] of Object.entries(listeners)) element.addEventListener(name, listener);
    const stop = () => {
      for (const [name, listener] of Object.entries(listeners)) element.removeEventListener(name, listener);
    };
    return { draw, stop };
  });
}
