// A picture with scores over it, each cell of each grid where it lies in the picture.

const LONGEST = 1152; // pixels of the canvas; a small picture is enlarged by a whole number

const MAP_DEFAULTS = {
  image: null,
  alt: "picture",
  grids: [],
  scale: null,
  colours: null,
  opacity: 0.6,
  pick: null,
  picked: [],
  legend: true,
  caption: "",
};

/** Index of the cell over the centre of each of `count` samples along an axis; -1 for none. */
function cellsAlong(count, length, low, high, cells) {
  const found = new Int32Array(count).fill(-1);
  for (let n = 0; n < count; n += 1) {
    // Multiplied before it is divided, as PatchGrid.on_pixels does.
    const cell = Math.floor((((n + 0.5) * length) / count - low) * cells / (high - low));
    if (cell >= 0 && cell < cells) found[n] = cell;
  }
  return found;
}

/** Which cell of a grid is at a point of the picture; -1 for none. */
function cellAt({ box: [left, top, right, bottom], rows, columns }, x, y) {
  const column = Math.floor(((x - left) * columns) / (right - left));
  const row = Math.floor(((y - top) * rows) / (bottom - top));
  const inside = column >= 0 && column < columns && row >= 0 && row < rows;
  return inside ? row * columns + column : -1;
}

/** The label of a cell; empty where it has none. */
const labelOf = (grid, cell) => String(grid.labels?.[cell] ?? "");

function boxOf({ box: [left, top, right, bottom], rows, columns }, cell) {
  const width = (right - left) / columns;
  const height = (bottom - top) / rows;
  const column = cell % columns;
  const row = Math.floor(cell / columns);
  return [left + column * width, top + row * height, left + (column + 1) * width, top + (row + 1) * height];
}

const cellArea = ({ box: [left, top, right, bottom], rows, columns }) =>
  ((right - left) * (bottom - top)) / (rows * columns);

/** Sum of the grids' scores at each sample, null where no scored cell lies. */
function heatOf(grids, size, width, height) {
  const sums = new Float64Array(width * height);
  const covered = new Uint8Array(width * height);
  for (const { box: [left, top, right, bottom], rows, columns, scores } of grids) {
    if (!scores) continue;
    const column = cellsAlong(width, size[1], left, right, columns);
    const row = cellsAlong(height, size[0], top, bottom, rows);
    for (let y = 0; y < height; y += 1) {
      if (row[y] < 0) continue;
      for (let x = 0; x < width; x += 1) {
        if (column[x] < 0) continue;
        const score = scores[row[y] * columns + column[x]];
        if (score === null) continue;
        sums[y * width + x] += score;
        covered[y * width + x] = 1;
      }
    }
  }
  return { sums, covered };
}

function paper(width, height) {
  const canvas = make("canvas");
  [canvas.width, canvas.height] = [width, height];
  return canvas;
}

/** The picture without its colours. */
function greyed(picture, width, height) {
  const canvas = paper(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = picture.naturalWidth > width;
  context.drawImage(picture, 0, 0, width, height);
  try {
    const data = context.getImageData(0, 0, width, height);
    for (let at = 0; at < data.data.length; at += 4) {
      const [red, green, blue] = data.data.subarray(at, at + 3);
      data.data.fill(0.299 * red + 0.587 * green + 0.114 * blue, at, at + 3);
    }
    context.putImageData(data, 0, 0);
  } catch {
    // A picture from another host may be shown, not read.
    context.filter = "grayscale(1)";
    context.drawImage(picture, 0, 0, width, height);
  }
  return canvas;
}

function map(element, view, { onPick = null, onHover = null } = {}) {
  return part(element, view, "lv-map", MAP_DEFAULTS, (state) => {
    const frame = make("div", "lv-frame");
    const canvas = make("canvas", "lv-canvas", { tabindex: 0 });
    const toggle = make("button", "lv-toggle", { type: "button", "aria-pressed": "false" }, "Picture");
    toggle.title = "Show the picture alone, in colour (key p)";
    const caption = make("div", "lv-caption");
    const legend = make("div", "lv-legend");
    const readout = make("div", "lv-readout", { "aria-live": "polite" });
    frame.append(canvas, toggle);
    element.append(frame, legend, caption, readout);

    const at = { plain: false, cell: null, start: null, drag: null };
    const drawn = { picture: null, source: undefined, grey: null, heat: null, drawnFor: null, scale: null, zoom: 1 };

    function place() {
      const [height, width] = state.view.size;
      const longest = Math.max(height, width, 1);
      drawn.zoom = longest > LONGEST / 2 ? Math.min(1, LONGEST / longest) : Math.floor(LONGEST / longest);
      const sides = [Math.max(1, Math.round(width * drawn.zoom)), Math.max(1, Math.round(height * drawn.zoom))];
      if (canvas.width !== sides[0] || canvas.height !== sides[1]) {
        [canvas.width, canvas.height] = sides;
        drawn.grey = null;
      }
      canvas.style.maxWidth = `min(100%, ${((72 * width) / Math.max(height, 1)).toFixed(2)}vh)`;
    }

    function load() {
      const source = state.view.image;
      if (source === drawn.source) return;
      Object.assign(drawn, { source, picture: null, grey: null });
      canvas.dataset.ready = source ? "false" : "true";
      if (!source) return;
      const picture = new Image();
      picture.onload = () => {
        if (drawn.source !== source) return;
        drawn.picture = picture;
        canvas.dataset.ready = "true";
        paint();
      };
      picture.onerror = () => {
        if (drawn.source === source) canvas.dataset.ready = "failed";
      };
      picture.src = source;
    }

    /** One pixel of heat for one of the picture, or fewer for a large one; enlarged without smoothing. */
    function colour() {
      const { grids, size, colours, opacity } = state.view;
      const width = Math.min(size[1], canvas.width);
      const height = Math.min(size[0], canvas.height);
      const { sums, covered } = heatOf(grids, size, width, height);
      const scale = scaleOf(state.view.scale, sums);
      const name = coloursOf(colours, scale);
      const table = Array.from({ length: 256 }, (_, n) => colourAt(name, n / 255));
      const heat = paper(width, height);
      const pixels = new ImageData(width, height);
      for (let n = 0; n < sums.length; n += 1) {
        if (!covered[n]) continue;
        const share = Math.min(Math.max(shareOf(sums[n], scale), 0), 1);
        pixels.data.set(table[Math.round(255 * share)], 4 * n);
        pixels.data[4 * n + 3] = Math.round(255 * opacity);
      }
      heat.getContext("2d").putImageData(pixels, 0, 0);
      Object.assign(drawn, { heat, scale, name, any: covered.includes(1) });
      canvas.dataset.low = scale.low;
      canvas.dataset.high = scale.high;
      canvas.dataset.colours = name;
    }

    function outline(context, cell, colour, width) {
      const grid = state.view.grids[cell[0]];
      if (!grid) return;
      const [left, top, right, bottom] = boxOf(grid, cell[1]).map((v) => v * drawn.zoom);
      for (const [style, line] of [["#000c", width + 2], [colour, width]]) {
        context.strokeStyle = style;
        context.lineWidth = line;
        context.strokeRect(left, top, right - left, bottom - top);
      }
    }

    /** The labels of cells, in one size a grid, long ones squeezed; where grids lie over one another, those of the finest. */
    function write(context) {
      const { grids } = state.view;
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.lineJoin = "round";
      grids.forEach((grid, number) => {
        const lengths = (grid.labels || []).map((label) => String(label).length);
        const longest = Math.min(Math.max(3, ...lengths), 8);
        for (let cell = 0; cell < lengths.length; cell += 1) {
          const text = labelOf(grid, cell);
          const [left, top, right, bottom] = boxOf(grid, cell).map((v) => v * drawn.zoom);
          const [x, y] = [(left + right) / 2, (top + bottom) / 2];
          const over = findCell(x / drawn.zoom, y / drawn.zoom, null);
          if (!text || (over && over[0] !== number)) continue;
          const size = Math.min(0.42 * (bottom - top), (1.6 * (right - left)) / longest);
          context.font = `600 ${size}px system-ui, sans-serif`;
          context.strokeStyle = "#000c";
          context.lineWidth = size / 5;
          context.strokeText(text, x, y, right - left);
          context.fillStyle = "#ffffff";
          context.fillText(text, x, y, right - left);
        }
      });
    }

    function paint() {
      const context = canvas.getContext("2d");
      const { width, height } = canvas;
      context.clearRect(0, 0, width, height);
      context.fillStyle = "#808080";
      context.fillRect(0, 0, width, height);
      const bare = at.plain || !drawn.any;
      if (drawn.picture) {
        context.imageSmoothingEnabled = drawn.zoom < 1;
        if (!bare && !drawn.grey) drawn.grey = greyed(drawn.picture, width, height);
        context.drawImage(bare ? drawn.picture : drawn.grey, 0, 0, width, height);
      }
      context.imageSmoothingEnabled = false;
      if (!bare) context.drawImage(drawn.heat, 0, 0, width, height);
      if (!at.plain) write(context);
      const line = Math.max(2, width / 260);
      for (const cell of state.view.picked) outline(context, cell, "#ffd24d", line);
      if (at.cell) outline(context, at.cell, "#ffffff", line);
      if (at.drag) {
        const [left, top, right, bottom] = at.drag.map((v) => v * drawn.zoom);
        context.strokeStyle = "#ffd24d";
        context.setLineDash([8, 6]);
        context.strokeRect(left, top, right - left, bottom - top);
        context.setLineDash([]);
      }
      canvas.dataset.shown = bare ? "picture" : "heat";
    }

    function tell() {
      const { grids } = state.view;
      readout.textContent = "";
      canvas.dataset.cell = at.cell ? at.cell.join(" ") : "";
      if (!at.cell || !grids[at.cell[0]]) return;
      const [number, cell] = at.cell;
      const grid = grids[number];
      const [left, top, right, bottom] = boxOf(grid, cell);
      const row = Math.floor(cell / grid.columns) + 1;
      const score = scoreAt((left + right) / 2, (top + bottom) / 2);
      const tile = grids.length > 1 ? `grid ${number + 1}, ` : "";
      const isPicked = state.view.picked.some((other) => sameCell(other, at.cell));
      const label = labelOf(grid, cell);
      readout.textContent =
        `${tile}row ${row}, column ${(cell % grid.columns) + 1}` +
        (label ? `, “${label}”` : "") +
        (score === null ? "" : `: ${told(score)}`) +
        (isPicked ? ", picked" : "");
    }

    function explain() {
      const { alt, pick, grids } = state.view;
      // Arrow keys reach a focused application even where a screen reader reads by them.
      canvas.setAttribute("role", grids.length ? "application" : "img");
      if (grids.length) canvas.setAttribute("aria-roledescription", "map");
      const keys = pick ? "Arrows move, Enter picks, p shows the picture." : "Arrows move, p shows the picture.";
      canvas.setAttribute("aria-label", grids.length ? `${alt}. ${keys}` : alt);
      canvas.style.cursor = pick ? "crosshair" : "default";
      canvas.style.touchAction = pick === "cells" ? "none" : "auto";
      caption.textContent = state.view.caption;
      caption.hidden = !state.view.caption;
      toggle.hidden = !drawn.any || !state.view.image;
      legend.hidden = !state.view.legend || !drawn.any;
      if (legend.hidden) return;
      const stops = Array.from({ length: 17 }, (_, n) => css(colourAt(drawn.name, n / 16)));
      const bar = make("span", "lv-bar");
      bar.style.background = `linear-gradient(to right, ${stops.join(", ")})`;
      legend.replaceChildren(
        make("span", "", {}, told(drawn.scale.low)),
        bar,
        make("span", "", {}, told(drawn.scale.high)),
      );
      legend.setAttribute("role", "img");
      legend.setAttribute("aria-label", `Colours from ${told(drawn.scale.low)} to ${told(drawn.scale.high)}`);
    }

    function draw() {
      place();
      load();
      colour();
      if (at.cell && !(state.view.grids[at.cell[0]] && at.cell[1] < cellsOf(at.cell[0]))) at.cell = null;
      paint();
      explain();
      tell();
    }

    const cellsOf = (number) => state.view.grids[number].rows * state.view.grids[number].columns;

    /** The sum of the scores at a point of the original picture; null where nothing lies. */
    function scoreAt(x, y) {
      let sum = null;
      for (const grid of state.view.grids) {
        const cell = grid.scores ? cellAt(grid, x, y) : -1;
        if (cell >= 0 && grid.scores[cell] !== null) sum = (sum || 0) + grid.scores[cell];
      }
      return sum;
    }

    /** The cell at a point; of several, the smallest. */
    function findCell(x, y, first = null) {
      const { grids } = state.view;
      const order = grids.map((_, n) => n).sort((a, b) => cellArea(grids[a]) - cellArea(grids[b]));
      for (const number of first === null ? order : [first, ...order]) {
        const cell = cellAt(grids[number], x, y);
        if (cell >= 0) return [number, cell];
      }
      return null;
    }

    function pointOf(event) {
      const box = canvas.getBoundingClientRect();
      const [height, width] = state.view.size;
      return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
    }

    function hover(cell) {
      if (sameCell(cell, at.cell) || (cell === null && at.cell === null)) return;
      at.cell = cell;
      paint();
      tell();
      if (onHover) onHover(cell);
    }

    function setPicked(picked) {
      state.view.picked = picked;
      paint();
      tell();
      if (onPick) onPick(picked);
    }

    function pickCell(cell) {
      if (!cell || !state.view.pick) return;
      const others = state.view.picked.filter((other) => !sameCell(other, cell));
      const wasPicked = others.length < state.view.picked.length;
      if (state.view.pick === "cell") setPicked([cell]);
      else setPicked(wasPicked ? others : [...others, cell]);
    }

    /** Adds the cells whose centres lie in a rectangle, of the finest grid that has any there. */
    function pickInside([left, top, right, bottom]) {
      const { grids } = state.view;
      const order = grids.map((_, n) => n).sort((a, b) => cellArea(grids[a]) - cellArea(grids[b]));
      const picked = [...state.view.picked];
      const finest = order.length ? cellArea(grids[order[0]]) : 0;
      for (const number of order.filter((n) => cellArea(grids[n]) < 1.25 * finest)) {
        for (let cell = 0; cell < cellsOf(number); cell += 1) {
          const box = boxOf(grids[number], cell);
          const [x, y] = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
          const inside = x >= left && x <= right && y >= top && y <= bottom;
          if (inside && !picked.some((other) => sameCell(other, [number, cell]))) picked.push([number, cell]);
        }
      }
      setPicked(picked);
    }

    function flip() {
      at.plain = !at.plain;
      toggle.setAttribute("aria-pressed", String(at.plain));
      paint();
    }

    function step([down, right]) {
      const { grids } = state.view;
      if (!grids.length) return;
      if (!at.cell) {
        hover([0, 0]);
        return;
      }
      const [left, top, far, bottom] = boxOf(grids[at.cell[0]], at.cell[1]);
      const x = (left + far) / 2 + right * (far - left);
      const y = (top + bottom) / 2 + down * (bottom - top);
      const found = findCell(x, y, at.cell[0]);
      if (found) hover(found);
    }

    canvas.addEventListener("pointerdown", (event) => {
      if (!state.view.pick || event.button !== 0) return;
      at.start = pointOf(event);
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const [x, y] = pointOf(event);
      if (at.start && state.view.pick === "cells") {
        const far = Math.hypot(x - at.start[0], y - at.start[1]) * (canvas.clientWidth / state.view.size[1]);
        const [left, right] = [at.start[0], x].sort((a, b) => a - b);
        const [top, bottom] = [at.start[1], y].sort((a, b) => a - b);
        if (at.drag || far > 5) at.drag = [left, top, right, bottom];
        if (at.drag) paint();
      }
      hover(findCell(x, y));
    });
    canvas.addEventListener("pointerup", (event) => {
      const { start, drag } = at;
      Object.assign(at, { start: null, drag: null });
      if (drag) pickInside(drag);
      else if (start) pickCell(findCell(...pointOf(event)));
    });
    canvas.addEventListener("pointercancel", () => Object.assign(at, { start: null, drag: null }));
    canvas.addEventListener("pointerleave", () => hover(null));
    canvas.addEventListener("blur", () => hover(null));
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (STEPS[event.key]) step(STEPS[event.key]);
      else if (isPick(event) && state.view.pick) pickCell(at.cell);
      else if (event.key === "p") flip();
      else if (event.key === "Escape" && state.view.pick && state.view.picked.length) setPicked([]);
      else return;
      event.preventDefault();
    });
    toggle.addEventListener("click", flip);

    return { draw, scoreAt, canvas };
  });
}
