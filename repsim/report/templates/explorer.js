// The interactive heatmaps. Bokeh draws; this fills its sources from the packed matrices, and marks
// the layers that were picked in every panel. Nothing is fetched: all data stand in this page.
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("matrices").textContent);
  const bytes = Uint8Array.from(atob(data.packed), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const NONE = -32768, NO_INTERVAL = 65535;
  const digits = Math.max(0, Math.round(-Math.log10(data.step)));
  const number = new Map(data.sides.map(([network, condition], i) => [network + "\n" + condition, i]));
  const shown = new Map();  // panel -> what it shows
  let marked = null;        // {row, column}: names of layers

  const model = (name) => {
    for (const doc of Bokeh.documents) {
      const found = doc.get_model_by_name(name);
      if (found) return found;
    }
    return null;
  };
  const models = (panel, side) => {
    for (const doc of Bokeh.documents) {
      const found = doc.get_model_by_name(panel);
      if (found) return found.center.filter((one) => one.name === panel + ":" + side);
    }
    return [];
  };
  const layersOf = (side) => data.layers[data.networks[data.sides[side][0]].layers];
  const text = (units) => (units * data.step).toFixed(digits).replace("-", "\u2212");

  // The cell of row i and column j of sides a × b; a block is kept once, for a ≤ b.
  function reader(a, b) {
    const block = data.blocks[Math.min(a, b) + "," + Math.max(a, b)];
    if (!block) return null;
    const [offset, rows, columns] = block;
    return (i, j) => {
      const at = offset + (a <= b ? i * columns + j : j * columns + i);
      const value = view.getInt16(2 * at, true);
      const half = view.getUint16(2 * (data.cells + at), true);
      return {value: value === NONE ? NaN : value, half: half === NO_INTERVAL ? NaN : half};
    };
  }

  function words(cell) {
    if (Number.isNaN(cell.value)) return ["not defined", ""];
    if (Number.isNaN(cell.half)) return [text(cell.value), ""];
    return [text(cell.value), "[" + text(cell.value - cell.half) + ", " + text(cell.value + cell.half) + "]"];
  }

  function show(panel, x, y) {
    const a = number.get(x.join("\n")), b = number.get(y.join("\n"));
    const read = a === undefined || b === undefined ? null : reader(a, b);
    const figure = model(panel);
    if (!figure) return;
    const cells = {x: [], y: [], value: [], row: [], column: [], text: [], range: []};
    shown.delete(panel);
    const empty = document.getElementById(panel + "-empty");
    if (empty) empty.hidden = Boolean(read);
    document.getElementById(panel).ariaLabel = `Heatmap: rows ${x.join(", ")}; columns ${y.join(", ")}`;
    if (read) {
      const rows = layersOf(a), columns = layersOf(b);
      shown.set(panel, {a, b, read, rows, columns});
      rows.names.forEach((row, i) => columns.names.forEach((column, j) => {
        const cell = read(i, j), [value, range] = words(cell);
        cells.x.push(j); cells.y.push(i); cells.value.push(cell.value * data.step);
        cells.row.push(row); cells.column.push(column);
        cells.text.push(value); cells.range.push(range);
      }));
      const n = columns.names.length, m = rows.names.length;
      figure.x_range.setv({start: -0.5, end: n - 0.5});
      figure.y_range.setv({start: -0.5, end: m - 0.5});
      model(panel + ":cuts").data = {
        x0: [...columns.cuts, ...rows.cuts.map(() => -0.5)],
        x1: [...columns.cuts, ...rows.cuts.map(() => n - 0.5)],
        y0: [...columns.cuts.map(() => -0.5), ...rows.cuts],
        y1: [...columns.cuts.map(() => m - 0.5), ...rows.cuts],
      };
    }
    model(panel + ":cells").data = cells;
    label(panel);
    mark(panel);
  }

  // All layers' names where they fit, the stages' names elsewhere.
  function label(panel) {
    const what = shown.get(panel), figure = model(panel);
    if (!what) return;
    const room = document.getElementById(panel).clientWidth - 60;
    for (const [axis, side] of [[figure.below[0], what.columns], [figure.left[0], what.rows]]) {
      const all = room / side.names.length >= 12.5 || !side.stages.length;
      const step = all ? Math.max(1, Math.ceil(12.5 * side.names.length / room)) : 1;
      const ticks = all
        ? side.names.map((name, i) => [i, name]).filter(([i]) => i % step === 0)
        : side.stages.filter(([at], i, list) =>
            i === 0 || (at - list[i - 1][0]) * room / side.names.length >= 10);
      axis.major_label_overrides = new Map(ticks);
      axis.ticker.ticks = ticks.map(([at]) => at);
    }
  }

  function mark(panel) {
    const what = shown.get(panel), note = document.getElementById(panel + "-note");
    const i = what && marked ? what.rows.names.indexOf(marked.row) : -1;
    const j = what && marked ? what.columns.names.indexOf(marked.column) : -1;
    for (const box of models(panel, "row")) {
      if (i >= 0) box.setv({bottom: i - 0.5, top: i + 0.5});
      box.visible = i >= 0;
    }
    for (const box of models(panel, "column")) {
      if (j >= 0) box.setv({left: j - 0.5, right: j + 0.5});
      box.visible = j >= 0;
    }
    if (!note) return;
    if (i >= 0 && j >= 0) {
      const [value, range] = words(what.read(i, j));
      note.textContent = value + " " + range;
    } else {
      note.textContent = marked && what ? "no such layer here" : "\u00a0";
    }
  }

  function setMark(next) {
    marked = next;
    document.getElementById("mark-row").value = next ? next.row : "";
    document.getElementById("mark-column").value = next ? next.column : "";
    data.panels.forEach(mark);
    document.getElementById("said").textContent = next ? said() : "";
  }

  // For readers who hear the page: one sentence, not one a panel.
  function said() {
    const parts = [...shown].map(([, what]) => {
      const i = what.rows.names.indexOf(marked.row), j = what.columns.names.indexOf(marked.column);
      const [a, b] = [data.sides[what.a], data.sides[what.b]].map((side) => side.join(" "));
      return i < 0 || j < 0 ? "" : `${a} by ${b}: ${words(what.read(i, j)).join(" ")}`;
    });
    return `Row ${marked.row}, column ${marked.column}. ${parts.filter(Boolean).join("; ")}`;
  }

  // Called by bokeh when a cell is picked; the same cell again takes the mark away.
  function pick(panel, x, y) {
    const what = shown.get(panel);
    if (!what || x === null || y === null) return;
    const row = what.rows.names[Math.round(y)], column = what.columns.names[Math.round(x)];
    if (row === undefined || column === undefined) return;
    const same = marked && marked.row === row && marked.column === column;
    setMark(same ? null : {row, column});
  }

  function showGrid() {
    const [x, y] = document.getElementById("compare").value.split("|");
    for (const choice of document.querySelectorAll("select[data-grid]")) {
      show(choice.dataset.grid, [choice.value, x], [choice.value, y]);
    }
  }

  function showPairs() {
    const reading = document.getElementById("reading");
    if (!reading) return;
    for (const rows of document.querySelectorAll("select[data-rows]")) {
      const columns = document.querySelector(`select[data-columns="${rows.dataset.rows}"]`);
      show(rows.dataset.rows, [rows.value, reading.value], [columns.value, reading.value]);
    }
  }

  function begin() {
    for (const choice of document.querySelectorAll("select[data-grid]")) choice.onchange = showGrid;
    document.getElementById("compare").onchange = showGrid;
    for (const choice of document.querySelectorAll("#reading, select[data-rows], select[data-columns]")) {
      choice.onchange = showPairs;
    }
    const names = [...new Set(data.layers.flatMap((one) => one.names))];
    for (const id of ["mark-row", "mark-column"]) {
      const choice = document.getElementById(id);
      for (const name of names) choice.add(new Option(name, name));
      choice.onchange = () => {
        const row = document.getElementById("mark-row").value;
        const column = document.getElementById("mark-column").value;
        // One of the two alone marks the layer against itself.
        setMark(row || column ? {row: row || column, column: column || row} : null);
      };
    }
    for (const link of document.querySelectorAll("a[data-set]")) {
      link.addEventListener("click", () => {
        const choice = document.getElementById(link.dataset.set);
        choice.value = link.dataset.value;
        choice.onchange();
      });
    }
    document.getElementById("mark-none").onclick = () => setMark(null);
    showGrid();
    showPairs();
    window.addEventListener("resize", () => data.panels.forEach(label));
    document.documentElement.dataset.ready = "yes";
  }

  window.repsim = {pick, state: () => ({shown: [...shown.keys()], marked})};
  (function wait(left) {
    if (window.Bokeh && Bokeh.documents.length && data.panels.every((one) => model(one))) begin();
    else if (left) setTimeout(() => wait(left - 1), 50);
  })(600);
})();
