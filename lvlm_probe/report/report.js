// Ties the viewer's parts to the document that the page carries.

(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const $ = (id) => document.getElementById(id);
  const answer = data.words.filter((word) => word.answer !== null);
  const question = data.words.filter((word) => word.answer === null);
  const state = { word: 0, peek: null, choice: {}, recipe: 0, layer: null, head: null };

  // ---- what is shown

  const rows = new WeakMap();

  /** The rows of packed scores; see lvlm_probe/report/packing.py. */
  function unpack(packed) {
    if (rows.has(packed)) return rows.get(packed);
    const bytes = Uint8Array.from(atob(packed.data), (letter) => letter.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    const size = packed.bits / 8;
    const steps = 2 ** packed.bits - 1;
    const width = packed.low.length ? bytes.length / size / packed.low.length : 0;
    const found = packed.low.map((low, row) =>
      Array.from({ length: width }, (_, n) => {
        const at = (row * width + n) * size;
        const whole = size === 1 ? view.getUint8(at) : view.getUint16(at, true);
        return low + (whole / steps) * (packed.high[row] - low);
      }),
    );
    rows.set(packed, found);
    return found;
  }

  /** One row of words and cells. */
  const rowOf = ({ words, cells }, at) => [...unpack(words)[at], ...unpack(cells)[at]];

  const shownWord = () => state.peek ?? state.word;
  const targetsOf = (word) => data.targets.map((_, n) => n).filter((n) => data.targets[n].tokens.includes(word));

  function shownTarget() {
    const word = shownWord();
    const choices = targetsOf(word);
    return choices.includes(state.choice[word]) ? state.choice[word] : choices[0];
  }

  const recipe = () => data.recipes[state.recipe];

  /** The scores on show: a row, where its cells lie, and what it is; a row of null where there is none. */
  function shown() {
    const target = shownTarget();
    if (state.head) {
      const { results, images, labels } = data.heads;
      const [layer, head] = state.head;
      const at = results[target].which.findIndex((one) => one[0] === layer && one[1] === head);
      const name = `attention, layer ${labels[layer]}, head ${head}`;
      const why = "this head's map was left out to keep the page small";
      return { row: at < 0 ? null : rowOf(results[target].maps, at), images, name, why };
    }
    if (!recipe()) return { row: null, images: data.images.map(() => ({ grids: [], why: "" })), name: "", why: "" };
    const { name, images, results, layers } = recipe();
    const result = results[target];
    const why = `${name} was not recorded for this word`;
    if (!result) return { row: null, images, name, why };
    const after = state.layer !== null && result.layers;
    const row = after ? rowOf(result.layers, state.layer) : rowOf(result.whole, 0);
    return { row, images, name: after ? `${name} after layer ${layers[state.layer]}` : name, why: "" };
  }

  /** Of several images of one grid each: one scale. */
  function sharedScale(row, images) {
    if (!row || images.length < 2 || images.some((image) => image.grids.length > 1)) return null;
    const cells = row.slice(data.words.length);
    const top = Math.max(...cells.map(Math.abs)) || 1;
    return { low: Math.min(...cells) < 0 ? -top : 0, high: top };
  }

  function told(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    return size && size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  }

  // ---- parts

  const parts = { maps: [], answer: null, question: null, heads: null, layers: null };

  function wordsView(words, row, label, kind) {
    const text = row ? row.slice(0, data.words.length) : [];
    const low = Math.min(0, ...text);
    const top = Math.max(-low, ...text) || 1;
    return {
      words: words.map((word) => ({
        text: word.text,
        index: word.answer ?? word.position,
        kind,
        // What follows the word had no part in it.
        score: row && (word.answer === null || word.answer < shownWord()) ? row[data.words.indexOf(word)] : null,
      })),
      scale: { low: low < 0 ? -top : 0, high: top },
      label,
    };
  }

  function drawMaps({ row, images, name, why }) {
    const scale = sharedScale(row, images);
    let at = data.words.length;
    images.forEach(({ grids, why: none }, number) => {
      const placed = grids.map((grid) => {
        const count = grid.rows * grid.columns;
        const scores = row ? row.slice(at, at + count) : null;
        at += count;
        return { ...grid, scores };
      });
      const image = data.images[number];
      const which = data.images.length > 1 ? `Image ${number + 1}` : "The picture";
      const missing = image.uri ? "" : "The picture was not recorded. ";
      const view = {
        image: image.uri,
        size: image.size,
        grids: row ? placed : [],
        scale,
        alt: row && grids.length ? `${which}, with ${name} of “${wordText()}” over it` : which,
        caption: missing + (row ? (none ? `No map: ${none}` : "") : why),
      };
      if (parts.maps[number]) parts.maps[number].update(view);
      else {
        const home = document.createElement("div");
        $("maps").append(home);
        parts.maps[number] = lvlmViewer.map(home, view);
      }
    });
  }

  const wordText = () => (answer[shownWord()]?.text ?? "").trim();

  function drawWords({ row }) {
    const view = { ...wordsView(answer, row, "The answer, word by word", "answer"), picked: [state.word] };
    if (parts.answer) parts.answer.update(view);
    else
      parts.answer = lvlmViewer.words($("answer"), view, {
        onPick: ([index]) => go({ word: index, peek: null }),
        onHover: (index) => go({ peek: index === state.word ? null : index }),
      });
    const asked = wordsView(question, row, "The question, word by word", "prompt");
    if (parts.question) parts.question.update(asked);
    else parts.question = lvlmViewer.words($("question"), asked);
  }

  function strongest({ row, images, name, why }) {
    const text = wordText();
    if (!row) return `“${text}”: ${why || "nothing to show"}.`;
    let best = null;
    let at = data.words.length;
    images.forEach(({ grids }, image) =>
      grids.forEach(({ box, rows: down, columns: across }) => {
        for (let cell = 0; cell < down * across; cell += 1) {
          const score = row[at + cell];
          if (best && score <= best.score) continue;
          const x = box[0] + (((cell % across) + 0.5) * (box[2] - box[0])) / across;
          const y = box[1] + ((Math.floor(cell / across) + 0.5) * (box[3] - box[1])) / down;
          best = { score, x: Math.round(x), y: Math.round(y), image };
        }
        at += down * across;
      }),
    );
    if (!best) return `“${text}”: ${name}.`;
    const which = data.images.length > 1 ? ` of image ${best.image + 1}` : "";
    return `“${text}”: ${name}, strongest at x ${best.x}, y ${best.y}${which} (${told(best.score)}).`;
  }

  const FACTS = [
    ["probability", "Probability", "that the model gave this token here", (v) => `${told(100 * v)} %`],
    ["margin", "Margin", "its logit less the runner-up's", told],
    ["entropy", "Entropy", "of the model's choice, in nats; 0 is certain", told],
    ["contribution sum", "Visual contribution", "relevance on the image over that on the text", told],
    ["llr", "What the image adds", "log-probability with the image less without it, in nats", told],
  ];

  function drawNumbers() {
    const word = shownWord();
    const list = $("numbers");
    list.replaceChildren();
    for (const [name, title, meaning, spell] of FACTS) {
      const values = data.numbers[name];
      if (!values) continue;
      const group = document.createElement("div");
      const term = document.createElement("dt");
      const value = document.createElement("dd");
      const note = document.createElement("dd");
      note.className = "note";
      term.textContent = title;
      value.textContent = values[word] === null ? "–" : spell(values[word]);
      value.dataset.name = name;
      note.textContent = meaning;
      if (name === "contribution sum") {
        const [top, mean] = ["max", "mean"].map((by) => told(data.numbers[`contribution ${by}`][word]));
        note.textContent += `, by sum; by max ${top}, by mean ${mean}`;
      }
      group.append(term, value, note);
      list.append(group);
    }
    $("numbers-of").textContent = `“${wordText()}” in numbers`;
    $("numbers-part").hidden = !list.children.length;
  }

  function drawHeads() {
    if (!data.heads) return;
    const { labels, heads, results } = data.heads;
    const view = {
      rows: labels,
      columns: Array.from({ length: heads }, (_, n) => String(n)),
      values: unpack(results[shownTarget()].totals),
      rowTitle: "layer",
      columnTitle: "head",
      picked: state.head,
      scale: null,
      title: `Attention to the image where “${wordText()}” is predicted`,
    };
    if (parts.heads) parts.heads.update(view);
    else
      parts.heads = lvlmViewer.heat($("heads"), view, {
        onPick: (layer, head) => {
          const same = state.head && state.head[0] === layer && state.head[1] === head;
          go({ head: same ? null : [layer, head] });
        },
      });
  }

  function drawLayers() {
    const shares = data.numbers["share by layer"];
    const depth = (shares || []).find((one) => one)?.length;
    $("layers-part").hidden = !depth;
    if (!depth) return;
    const at = recipe()?.layers[state.layer];
    const view = {
      rows: Array.from({ length: depth }, (_, n) => String(n)),
      columns: answer.map((word) => word.text.trim() || "␣"),
      values: Array.from({ length: depth }, (_, n) => answer.map((_word, w) => shares[w]?.[n] ?? null)),
      scale: { low: 0, high: 1 },
      rowTitle: "layer",
      columnTitle: "word",
      title: "Share of the relevance that lies on the image, after each layer",
      picked: state.layer === null || at === undefined ? null : [at, state.word],
    };
    if (parts.layers) parts.layers.update(view);
    else
      parts.layers = lvlmViewer.heat($("layers"), view, {
        onPick: (layer, word) => {
          const number = data.recipes.findIndex((one) => one.name === "relevancy");
          const kept = data.recipes[number].layers.indexOf(layer);
          go({ word, peek: null, head: null, recipe: number, layer: kept < 0 ? null : kept });
        },
      });
  }

  function drawControls() {
    const layers = recipe()?.layers ?? [];
    const slider = $("layer");
    $("layer-part").hidden = !layers.length || state.head !== null;
    slider.max = layers.length;
    slider.value = state.layer ?? layers.length;
    const name = state.layer === null ? "whole result" : `after layer ${layers[state.layer]} of ${recipe().depth}`;
    slider.setAttribute("aria-valuetext", name);
    $("layer-name").textContent = name;
    for (const choice of document.querySelectorAll("input[name=recipe]"))
      choice.checked = Number(choice.value) === state.recipe && !state.head;
    $("back").hidden = !state.head;
    if (state.head) {
      const name = `layer ${data.heads.labels[state.head[0]]}, head ${state.head[1]}`;
      $("back").textContent = `Attention of ${name} ✕`;
      $("back").setAttribute("aria-label", `Leave ${name}`);
    }
    const about = state.head ? "The attention weights of one head, where the word is predicted." : recipe()?.summary;
    $("recipe-about").textContent = about ?? "";
    const choices = targetsOf(shownWord());
    $("target-part").hidden = choices.length < 2;
    $("target").replaceChildren(
      ...choices.map((n) => {
        const option = document.createElement("option");
        option.value = n;
        option.textContent = data.targets[n].label;
        option.selected = n === shownTarget();
        return option;
      }),
    );
  }

  function draw() {
    const now = shown();
    drawControls();
    drawMaps(now);
    drawWords(now);
    drawNumbers();
    drawHeads();
    drawLayers();
    $("status").textContent = strongest(now);
  }

  function go(changes) {
    const before = JSON.stringify(state);
    Object.assign(state, changes);
    if (JSON.stringify(state) === before) return;
    draw();
    remember();
  }

  // ---- the address keeps what is looked at, so that it can be linked

  function remember() {
    const kept = new URLSearchParams({ word: state.word });
    if (recipe()) kept.set("recipe", recipe().name);
    if (state.layer !== null) kept.set("layer", recipe().layers[state.layer]);
    if (state.head) kept.set("head", state.head.join("."));
    history.replaceState(null, "", `#${kept}`);
  }

  function recall() {
    const kept = new URLSearchParams(location.hash.slice(1));
    const word = Number(kept.get("word"));
    if (Number.isInteger(word) && word >= 0 && word < answer.length) state.word = word;
    const number = data.recipes.findIndex((one) => one.name === kept.get("recipe"));
    if (number >= 0) state.recipe = number;
    const layer = kept.has("layer") && recipe() ? recipe().layers.indexOf(Number(kept.get("layer"))) : -1;
    state.layer = layer >= 0 ? layer : null;
    const [row, head] = (kept.get("head") ?? "").split(".").map(Number);
    if (data.heads && head >= 0 && head < data.heads.heads && data.heads.labels[row]) state.head = [row, head];
  }

  // ---- controls

  data.recipes.forEach(({ name }, number) => {
    const label = document.createElement("label");
    const choice = document.createElement("input");
    Object.assign(choice, { type: "radio", name: "recipe", value: number });
    const text = document.createElement("span");
    text.textContent = name;
    label.append(choice, text);
    $("recipes").append(label);
    choice.addEventListener("change", () => {
      const at = recipe().layers[state.layer];
      const kept = data.recipes[number].layers.indexOf(at);
      go({ recipe: number, head: null, layer: kept < 0 ? null : kept });
    });
  });
  data.images.slice(0, 4).forEach(({ uri }, number) => {
    if (!uri) return;
    const image = document.createElement("img");
    Object.assign(image, { src: uri, alt: data.images.length > 1 ? `Image ${number + 1}` : "The picture asked about" });
    $("thumbs").append(image);
  });
  $("recipes-part").hidden = !data.recipes.length;
  $("layer").addEventListener("input", (event) => {
    const value = Number(event.target.value);
    go({ layer: value === recipe().layers.length ? null : value });
  });
  $("back").addEventListener("click", () => {
    go({ head: null });
    document.querySelector("input[name=recipe]:checked")?.focus();
  });
  $("target").addEventListener("change", (event) =>
    go({ choice: { ...state.choice, [shownWord()]: Number(event.target.value) } }),
  );
  $("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  $("heads-part").hidden = !data.heads;
  $("question-part").hidden = !question.length;
  $("look").classList.toggle("many", data.images.length > 1);
  addEventListener("hashchange", () => {
    recall();
    draw();
  });
  recall();
  draw();
})();
