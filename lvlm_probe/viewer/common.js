// What the parts share: elements, colours, numbers, keys. The parts are joined inside one function, see __init__.py.

const STOPS = {
  inferno:
    "000004 040312 0b0724 150b37 210c4a 2f0a5b 3d0965 4a0c6b 57106e 64156e 71196e " +
    "7d1e6d 8a226a 972766 a32c61 b0315b bc3754 c73e4c d24644 db503b e45a31 eb6628 " +
    "f1731d f68013 f98e09 fb9d07 fcac11 fbbc21 f9cb35 f5db4c f2ea69 f3f68a fcffa4",
  diverging:
    "053061 0e4179 175290 1f63a8 2a71b2 3480b9 3f8ec0 529dc8 6bacd1 84bcd9 9bc9e0 " +
    "aed3e6 c2ddec d4e6f1 e0ecf3 ecf2f5 f7f6f6 f9eee7 fbe5d8 fddcc9 fbccb4 f8bb9e " +
    "f5aa89 ee9677 e48066 db6b55 d05548 c53e3d ba2832 ab162a 930e26 7c0722 67001f",
};

const TABLES = Object.fromEntries(
  Object.entries(STOPS).map(([name, text]) => [
    name,
    text.split(" ").map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16))),
  ]),
);

/** Red, green, blue of a share from 0 to 1. */
function colourAt(name, share) {
  const table = TABLES[name] || TABLES.inferno;
  const at = Math.min(Math.max(share, 0), 1) * (table.length - 1);
  const low = Math.min(Math.floor(at), table.length - 2);
  return table[low].map((value, c) => Math.round(value + (at - low) * (table[low + 1][c] - value)));
}

const css = ([red, green, blue], alpha = 1) => `rgba(${red}, ${green}, ${blue}, ${alpha})`;

/** Where a value lies between the ends of a scale; 0 where the scale has no width. */
function shareOf(value, { low, high }) {
  return high > low ? (value - low) / (high - low) : 0;
}

/** The scale that was given, or else from 0 up; as far below 0 as above it where something is negative. */
function scaleOf(given, values) {
  if (given) return given;
  let top = 0;
  let negative = false;
  for (const value of values) {
    if (value === null) continue;
    top = Math.max(top, Math.abs(value));
    negative = negative || value < 0;
  }
  return { low: negative ? -(top || 1) : 0, high: top || 1 };
}

const coloursOf = (given, scale) => given || (scale.low < 0 ? "diverging" : "inferno");

/** Three significant digits. */
function told(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

/** An element with its class, its attributes and its text; text is never read as HTML. */
function make(tag, className = "", attributes = {}, text = null) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  if (text !== null) element.textContent = text;
  return element;
}

function makeSvg(tag, attributes = {}, text = null) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}

/** Empties an element and makes it the home of a part. */
function settle(element, className) {
  element.replaceChildren();
  element.classList.add("lv", className);
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const isPick = (event) => event.key === "Enter" || event.key === " ";
const sameCell = (a, b) => a !== null && b !== null && a[0] === b[0] && a[1] === b[1];

/** A part that is drawn anew whenever its view changes; `start` gives what else the part can do. */
function part(element, view, className, defaults, start) {
  const state = { view: { ...defaults, ...view } };
  settle(element, className);
  const { draw, stop, ...more } = start(state);
  draw();
  return {
    ...more,
    element,
    update(changed) {
      state.view = { ...state.view, ...changed };
      draw();
    },
    destroy() {
      if (stop) stop();
      element.replaceChildren();
      element.classList.remove("lv", className);
    },
  };
}
