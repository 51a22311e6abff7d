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

    function tint(score, scale) {
      if (score === null || score === undefined) return "";
      const far = Math.max(Math.abs(scale.low), Math.abs(scale.high)) || 1;
      const share = Math.min(Math.abs(score) / far, 1);
      const colour = scale.low < 0 ? (score < 0 ? BLUE : RED) : WARM;
      return css(colour, (0.66 * share).toFixed(3));
    }

    function button(word, scale) {
      const score = word.score ?? null;
      const made = make("button", `lv-word lv-${word.kind === "answer" ? "answer" : "prompt"}`, { type: "button" });
      made.textContent = spelled(word.text);
      made.dataset.index = word.index;
      made.disabled = Boolean(word.disabled);
      made.style.background = tint(score, scale);
      if (score !== null) {
        made.title = told(score);
        made.dataset.score = score;
        made.setAttribute("aria-label", `${spelled(word.text)}, ${told(score)}`);
      }
      if (onPick) made.setAttribute("aria-pressed", String(state.view.picked.includes(word.index)));
      return made;
    }

    function rove(to) {
      const live = buttons.filter((b) => !b.disabled);
      current = Math.min(Math.max(to, 0), live.length - 1);
      live.forEach((b, n) => b.setAttribute("tabindex", n === current ? "0" : "-1"));
      return live[current];
    }

    function draw() {
      const focused = element.contains(document.activeElement) ? document.activeElement.dataset.index : null;
      element.setAttribute("role", "group");
      element.setAttribute("aria-label", state.view.label);
      const scale = scaleOf(state.view.scale, state.view.words.map((w) => w.score ?? null));
      buttons = state.view.words.map((word) => button(word, scale));
      element.replaceChildren(...buttons);
      const live = buttons.filter((b) => !b.disabled);
      const wanted = live.findIndex((b) => b.dataset.index === focused);
      const pressed = live.findIndex((b) => b.getAttribute("aria-pressed") === "true");
      rove(wanted >= 0 ? wanted : Math.max(pressed, 0));
      if (wanted >= 0) live[wanted].focus();
    }

    function pick(index) {
      const { picked, multiple } = state.view;
      const others = picked.filter((other) => other !== index);
      if (!multiple) state.view.picked = [index];
      else state.view.picked = others.length < picked.length ? others : [...others, index].sort((a, b) => a - b);
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
        if (index !== null && onPick) pick(index);
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
