// A matrix of numbers as coloured cells: layers × heads, layers × tokens.

const HEAT_DEFAULTS = {
  rows: [],
  columns: [],
  values: [],
  scale: null,
  colours: null,
  title: "",
  rowTitle: "",
  columnTitle: "",
  picked: null,
  digits: null,
};
const ROOM = 14; // columns up to which each cell shows its number

function heat(element, view, { onPick = null, onHover = null } = {}) {
  return part(element, view, "lv-heat", HEAT_DEFAULTS, (state) => {
    const scroll = make("div", "lv-scroll");
    const readout = make("div", "lv-readout");
    let cells = [];
    let current = [0, 0];
    const heading = make("div", "lv-title");
    element.append(heading, scroll, readout);

    const nameOf = ([row, column]) => {
      const { rows, columns, rowTitle, columnTitle } = state.view;
      return `${rowTitle} ${rows[row]}, ${columnTitle} ${columns[column]}`.trim();
    };

    /** The number on a cell: as many digits behind the point as asked for, or else two significant ones. */
    function written(value) {
      const { digits } = state.view;
      if (digits === null) return told(Number(value.toPrecision(2)));
      return (Math.round(value * 10 ** digits) / 10 ** digits + 0).toFixed(digits);
    }

    function cellOf(row, column, scale, colours) {
      const value = state.view.values[row][column];
      const cell = make("td", "lv-cell", { role: "gridcell", tabindex: -1 });
      cell.dataset.row = row;
      cell.dataset.column = column;
      cell.setAttribute("aria-label", `${nameOf([row, column])}: ${told(value)}`);
      if (value !== null) {
        const colour = colourAt(colours, shareOf(value, scale));
        const bright = (0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]) / 255;
        cell.style.background = css(colour);
        cell.style.color = bright > 0.55 ? "#000" : "#fff";
        cell.dataset.value = value;
        if (state.view.columns.length <= ROOM) cell.textContent = written(value);
      }
      const isPicked = sameCell(state.view.picked, [row, column]);
      if (onPick) cell.setAttribute("aria-selected", String(isPicked));
      return cell;
    }

    function head() {
      const { columns, rowTitle, columnTitle } = state.view;
      const line = make("tr", "", { role: "row" });
      const upright = columns.some((name) => String(name).length > 4);
      const every = upright ? 1 : Math.ceil(columns.length / 20);
      const corner = [rowTitle, columnTitle].filter(Boolean).join(" \\ ");
      line.append(make("th", "lv-corner", { role: "columnheader" }, corner));
      columns.forEach((name, n) => {
        const cell = make("th", upright ? "lv-upright" : "", { scope: "col", role: "columnheader" });
        cell.append(make("span", n % every ? "lv-quiet" : "", {}, String(name)));
        line.append(cell);
      });
      return line;
    }

    function rove(to) {
      const [rows, columns] = [cells.length, cells[0]?.length || 0];
      if (!rows || !columns) return null;
      cells[current[0]]?.[current[1]]?.setAttribute("tabindex", "-1");
      current = [Math.min(Math.max(to[0], 0), rows - 1), Math.min(Math.max(to[1], 0), columns - 1)];
      const cell = cells[current[0]][current[1]];
      cell.setAttribute("tabindex", "0");
      return cell;
    }

    function draw() {
      const { rows, columns, values, title } = state.view;
      const hadFocus = scroll.contains(document.activeElement);
      const scale = scaleOf(state.view.scale, values.flat());
      const colours = coloursOf(state.view.colours, scale);
      const table = make("table", "lv-table", { role: "grid" });
      table.setAttribute("aria-label", title || "matrix");
      heading.textContent = title;
      heading.hidden = !title;
      const body = make("tbody");
      body.append(head());
      cells = rows.map((name, row) => {
        const line = make("tr", "", { role: "row" });
        line.append(make("th", "", { scope: "row", role: "rowheader" }, String(name)));
        const made = columns.map((_, column) => cellOf(row, column, scale, colours));
        line.append(...made);
        body.append(line);
        return made;
      });
      table.classList.toggle("lv-tight", columns.length > ROOM);
      table.append(body);
      scroll.replaceChildren(table);
      const focused = rove(state.view.picked || current);
      if (focused && hadFocus) focused.focus();
      tell(state.view.picked);
    }

    function tell(place) {
      const value = place ? state.view.values[place[0]]?.[place[1]] : undefined;
      readout.textContent = value === undefined ? "" : `${nameOf(place)}: ${told(value)}`;
    }

    function pick(place) {
      for (const cell of cells.flat()) cell.setAttribute("aria-selected", "false");
      cells[place[0]][place[1]].setAttribute("aria-selected", "true");
      state.view.picked = place;
      tell(place);
      onPick(...place);
    }

    const placeOf = (event) => {
      const cell = event.target.closest("td.lv-cell");
      return cell ? [Number(cell.dataset.row), Number(cell.dataset.column)] : null;
    };
    function hover(event) {
      const place = placeOf(event);
      if (!place) return;
      tell(place);
      if (onHover) onHover(...place);
    }

    scroll.addEventListener("pointerover", hover);
    scroll.addEventListener("pointerleave", () => tell(state.view.picked));
    scroll.addEventListener("focusin", (event) => {
      const place = placeOf(event);
      if (place) rove(place);
      hover(event);
    });
    scroll.addEventListener("click", (event) => {
      const place = placeOf(event);
      if (place && onPick) pick(place);
      if (place) rove(place).focus();
    });
    scroll.addEventListener("keydown", (event) => {
      const place = placeOf(event);
      if (!place) return;
      if (STEPS[event.key]) rove([place[0] + STEPS[event.key][0], place[1] + STEPS[event.key][1]]).focus();
      else if (isPick(event) && onPick) pick(place);
      else return;
      event.preventDefault();
    });
    return { draw };
  });
}
