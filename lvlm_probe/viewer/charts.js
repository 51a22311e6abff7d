// Numbers as bars and as lines.

const BARS_DEFAULTS = { bars: [], title: "", unit: "" };

function bars(element, view) {
  return part(element, view, "lv-bars", BARS_DEFAULTS, (state) => {
    function draw() {
      const { bars: rows, title, unit } = state.view;
      const known = rows.flatMap((row) => [row.value, row.low, row.high]).filter((v) => v !== null && v !== undefined);
      const low = Math.min(0, ...known);
      const high = Math.max(0, ...known);
      const percent = (value) => 100 * shareOf(value, { low, high: high > low ? high : 1 });
      const groups = [...new Set(rows.map((row) => row.group ?? ""))];
      const list = make("ul", "lv-list");
      for (const row of rows) {
        const line = make("li", "lv-row");
        const track = make("span", "lv-track", { "aria-hidden": "true" });
        const value = row.value ?? null;
        if (value !== null) {
          const [from, to] = [percent(0), percent(value)].sort((a, b) => a - b);
          const fill = make("span", `lv-fill lv-series-${groups.indexOf(row.group ?? "") % 6}`);
          fill.style.left = `${from}%`;
          fill.style.width = `${to - from}%`;
          track.append(fill);
        }
        if ((row.low ?? null) !== null && (row.high ?? null) !== null) {
          const whisker = make("span", "lv-whisker");
          whisker.style.left = `${percent(row.low)}%`;
          whisker.style.width = `${percent(row.high) - percent(row.low)}%`;
          track.append(whisker);
        }
        line.append(make("span", "lv-label", {}, spelled(String(row.label))), track);
        line.append(make("span", "lv-value", {}, `${told(value)}${value !== null && unit ? ` ${unit}` : ""}`));
        list.append(line);
      }
      element.replaceChildren();
      if (title) element.append(make("div", "lv-title", {}, title));
      if (title) list.setAttribute("aria-label", title);
      element.append(list);
      const named = groups.filter(Boolean);
      if (named.length > 1) element.append(keyOf(named.map((name) => [name, groups.indexOf(name)])));
    }
    return { draw };
  });
}

function keyOf(names) {
  const key = make("div", "lv-key");
  for (const [name, number] of names) {
    const entry = make("span", "lv-entry");
    entry.append(make("span", `lv-swatch lv-series-${number % 6}`), make("span", "", {}, name));
    key.append(entry);
  }
  return key;
}

const LINES_DEFAULTS = { x: [], lines: [], xTitle: "", yTitle: "", title: "" };
const CHART = { width: 560, height: 260, left: 56, right: 12, top: 10, bottom: 40 };

/** Round numbers from low to high, about as many as asked for. */
function ticksOf(low, high, count) {
  const raw = (high - low) / count || 1;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((n) => n * unit).find((s) => s >= raw);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, n) => Number(((first + n) * step).toPrecision(12)));
}

function lines(element, view) {
  return part(element, view, "lv-lines", LINES_DEFAULTS, (state) => {
    const isNumber = (v) => v !== null && v !== undefined;

    function draw() {
      const { x, lines: series, xTitle, yTitle, title } = state.view;
      const known = series.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]).filter(isNumber);
      const low = Math.min(...(known.length ? known : [0]), 0);
      const high = Math.max(...(known.length ? known : [1]), low + 1e-12);
      const numbers = x.every((v) => typeof v === "number");
      const at = numbers ? x : x.map((_, n) => n);
      const [first, last] = [Math.min(...at), Math.max(...at)];
      const right = CHART.width - CHART.right;
      const floor = CHART.height - CHART.bottom;
      const px = (v) => CHART.left + (last > first ? (v - first) / (last - first) : 0.5) * (right - CHART.left);
      const py = (v) => floor - ((v - low) / (high - low)) * (floor - CHART.top);

      const svg = makeSvg("svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: "img" });
      const ends = series.map((s) => `${s.label} from ${told(s.y.find(isNumber))} to ${told(s.y.findLast(isNumber))}`);
      svg.setAttribute("aria-label", [title || yTitle, ...ends].filter(Boolean).join("; "));
      for (const tick of ticksOf(low, high, 6)) {
        svg.append(makeSvg("line", { class: "lv-rule", x1: CHART.left, x2: right, y1: py(tick), y2: py(tick) }));
        svg.append(makeSvg("text", { x: CHART.left - 6, y: py(tick) + 4, "text-anchor": "end" }, told(tick)));
      }
      const every = Math.ceil(at.length / 10) || 1;
      const shown = numbers && at.length > 12 ? ticksOf(first, last, 8) : at.filter((_, n) => n % every === 0);
      for (const tick of shown) {
        const name = numbers ? told(tick) : String(x[tick]);
        svg.append(makeSvg("text", { x: px(tick), y: floor + 16, "text-anchor": "middle" }, name));
      }
      svg.append(makeSvg("text", { x: (CHART.left + right) / 2, y: CHART.height - 6, "text-anchor": "middle" }, xTitle));
      const turned = `translate(13 ${(CHART.top + floor) / 2}) rotate(-90)`;
      svg.append(makeSvg("text", { transform: turned, "text-anchor": "middle" }, yTitle));
      series.forEach((s, n) => svg.append(...curve(s, n, at, px, py)));
      element.replaceChildren();
      if (title) element.append(make("div", "lv-title", {}, title));
      element.append(svg);
      if (series.length > 1) element.append(keyOf(series.map((s, n) => [s.label, n])));
    }

    function curve(s, number, at, px, py) {
      const made = [];
      const spread = at.map((_, n) => n).filter((n) => isNumber(s.low?.[n]) && isNumber(s.high?.[n]));
      if (spread.length) {
        const there = spread.map((n) => `${px(at[n])},${py(s.high[n])}`);
        const back = spread.reverse().map((n) => `${px(at[n])},${py(s.low[n])}`);
        const points = [...there, ...back].join(" ");
        made.push(makeSvg("polygon", { class: `lv-band lv-series-${number % 6}`, points }));
      }
      let path = "";
      s.y.forEach((value, n) => {
        if (!isNumber(value)) return;
        path += `${isNumber(s.y[n - 1]) ? "L" : "M"}${px(at[n])} ${py(value)}`;
        const dot = makeSvg("circle", { class: `lv-dot lv-series-${number % 6}`, cx: px(at[n]), cy: py(value), r: 3 });
        dot.append(makeSvg("title", {}, `${s.label}, ${state.view.x[n]}: ${told(value)}`));
        made.push(dot);
      });
      return [makeSvg("path", { class: `lv-curve lv-series-${number % 6}`, d: path }), ...made];
    }
    return { draw };
  });
}
