// The layer x step map of a statistic, and the history of one layer beneath it.
"use strict";

(() => {
  const { el } = Medic;
  const ZERO = 1;
  const NOT_FINITE = 2;
  const FIRST = 3;
  const LAST = 65535;
  const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
  const BOTTOM = 22;

  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const ramp = (colours) => {
    const stops = colours.map(rgb);
    return (share) => {
      const at = Math.min(stops.length - 1.000001, Math.max(0, share * (stops.length - 1)));
      const [low, high, part] = [stops[Math.floor(at)], stops[Math.floor(at) + 1], at % 1];
      return low.map((value, i) => Math.round(value + (high[i] - value) * part));
    };
  };

  const open = (packed) => {
    const map = { ...packed, steps: Medic.unpack(packed.steps), shown: Medic.unpack(packed.shown) };
    map.other = packed.other ? Medic.unpack(packed.other) : map.shown;
    return map;
  };

  // The number that a code stands for; null where nothing was measured.
  const decode = (map, code) => {
    if (code === 0) return null;
    if (code === NOT_FINITE) return NaN;
    if (code === ZERO && map.log) return 0;
    const value = map.low + ((code - FIRST) / (LAST - FIRST)) * (map.high - map.low);
    return map.log ? 10 ** value : value;
  };
  const rounded = (value) => (value === null || !Number.isFinite(value) ? value : Number(value.toPrecision(3)));
  const cellText = (map, at) => {
    const [one, other] = [map.shown[at], map.other[at]];
    if (!one && !other) return "not measured";
    if (one === NOT_FINITE) return "not finite (NaN or infinity)";
    const [low, high] = [decode(map, Math.min(one, other)), decode(map, Math.max(one, other))].map(rounded);
    return low === high ? Medic.number(low) : `${Medic.number(low)} to ${Medic.number(high)}`;
  };

  // Where a column ends: at the next one, and before a hole after as long as the column before it.
  const ends = (map) => {
    const steps = Array.from(map.steps);
    const usual = steps.length > 1 ? (map.last - steps[0]) / (steps.length - 1) : 1;
    return steps.map((step, i) => {
      const next = i + 1 < steps.length ? steps[i + 1] : Math.max(map.last + 1, step + Math.min(usual, 1));
      const hole = map.gaps.find(([from, to]) => from >= step && from < next && to <= next);
      return hole ? hole[0] + 1 : next;
    });
  };

  // The maps of a run with their selector. `focus(layer)` shows the history of a layer.
  Medic.layers = (view, packed, colours, names) => {
    const opened = new Map();
    const map = () => {
      if (!opened.has(chosen)) opened.set(chosen, open(packed[chosen]));
      return opened.get(chosen);
    };
    const paint = ramp(colours);
    let chosen = 0;
    let layer = names.find((name) => packed[0].layers.includes(name)) || packed[0].layers[0];
    let picture = null;
    let bounds = [];
    let cursor = null;
    let box = { left: 0, width: 1, row: 1, height: 1 };

    const canvas = el("canvas", { tabindex: "0", role: "img" });
    const tip = el("div", { class: "tip", hidden: true });
    const holder = el("div", { class: "map" }, canvas, tip);
    const legend = el("div", { class: "legend" });
    const past = el("div", { class: "past" });
    const pick = el("select", { id: Medic.id("layer"), onChange: () => focus(pick.value) });
    const select = el(
      "select",
      { id: Medic.id("statistic"), onChange: () => choose(Number(select.value)) },
      packed.map((one, i) => el("option", { value: i, text: one.title })),
    );
    const table = el("details", { class: "numbers", onToggle: () => table.open && fillTable() }, el("summary", { text: "The map as a table" }));

    const choose = (index) => {
      chosen = index;
      select.value = String(index);
      cursor = null;
      const { layers, kinds, title, about, log } = map();
      canvas.setAttribute(
        "aria-label",
        `${title} of ${layers.length} layers over steps ${Medic.step(map().steps[0])} to ${Medic.step(map().last)}. Arrow keys move through the cells, Enter shows the history of the layer. The table below holds the same numbers.`,
      );
      pick.replaceChildren(...layers.map((name, i) => el("option", { value: name, text: kinds[i] ? `${name} (${kinds[i]})` : name })));
      note.textContent = about ? `${about}${log ? "; logarithmic" : ""}` : "";
      legend.replaceChildren(...legendOf(map()));
      render();
      focus(layers.includes(layer) ? layer : layers.find((name) => name.startsWith(`${layer}.`) || layer.startsWith(`${name}.`)) || layers[0]);
      table.open = false;
    };

    const legendOf = (one) => {
      const value = (share) => Medic.tick(rounded(decode(one, Math.round(FIRST + share * (LAST - FIRST)))));
      const has = (code) => one.shown.some((cell) => cell === code) || one.other.some((cell) => cell === code);
      const bar = el("canvas", { width: 160, height: 1, class: "bar", "aria-hidden": "true" });
      const context = bar.getContext("2d");
      for (let i = 0; i < 160; i++) {
        context.fillStyle = `rgb(${paint(i / 159)})`;
        context.fillRect(i, 0, 1, 1);
      }
      const entry = (kind, text) => el("span", { class: "key" }, el("i", { class: `cell ${kind}` }), text);
      return [
        el("span", { class: "key" }, value(0), bar, value(1)),
        one.log && has(ZERO) ? entry("zero", "exactly zero") : null,
        has(NOT_FINITE) ? entry("broken", "not finite") : null,
        has(0) ? entry("empty", "not measured") : null,
      ].filter(Boolean);
    };

    // One pixel a cell; stretched when it is drawn.
    const render = () => {
      const one = map();
      bounds = ends(one);
      picture = document.createElement("canvas");
      picture.width = one.columns;
      picture.height = one.layers.length;
      const context = picture.getContext("2d");
      const image = context.createImageData(picture.width, picture.height);
      const zero = rgb(Medic.colour("cell-zero"));
      const broken = rgb(Medic.colour("cell-broken"));
      for (let i = 0; i < one.shown.length; i++) {
        const code = one.shown[i];
        if (code === 0) continue;
        const colour = code === NOT_FINITE ? broken : code === ZERO && one.log ? zero : paint((code - FIRST) / (LAST - FIRST));
        image.data.set([...colour, 255], 4 * i);
      }
      context.putImageData(image, 0, 0);
    };

    const draw = () => {
      const one = map();
      const width = holder.clientWidth;
      if (!width) return;
      const ratio = devicePixelRatio || 1;
      const row = Math.max(1.5, Math.min(20, 520 / one.layers.length));
      const height = row * one.layers.length;
      const left = Math.min(Math.max(62, width * 0.24), 210);
      box = { left, width: width - left - 14, row, height };
      canvas.width = width * ratio;
      canvas.height = (height + BOTTOM) * ratio;
      canvas.style.width = `${width}px`;
      canvas.style.height = `${height + BOTTOM}px`;
      const context = canvas.getContext("2d");
      context.scale(ratio, ratio);
      context.imageSmoothingEnabled = false;
      hatch(context);
      context.save();
      context.beginPath();
      context.rect(box.left, 0, box.width, height);
      context.clip();
      for (let i = 0; i < one.columns; i++) {
        const from = xOf(one.steps[i]);
        const to = xOf(bounds[i]);
        if (to < box.left || from > box.left + box.width) continue;
        context.drawImage(picture, i, 0, 1, one.layers.length, from, 0, Math.max(to - from, 0.6) + 0.4, height);
      }
      onsets(context, height);
      context.restore();
      labels(context, one);
      axis(context, height);
      if (cursor) outline(context, one);
    };
    const xOf = (step) => box.left + ((step - view.range[0]) / (view.range[1] - view.range[0])) * box.width;
    const stepOf = (x) => view.range[0] + ((x - box.left) / box.width) * (view.range[1] - view.range[0]);

    const hatch = (context) => {
      context.fillStyle = Medic.colour("cell-empty");
      context.fillRect(box.left, 0, box.width, box.height);
    };
    // On the map colours mean values: onsets and treatments are lines with a halo.
    const onsets = (context, height) => {
      const mark = (step, colour, dash) => {
        for (const [stroke, width] of [[Medic.colour("halo"), 3.5], [colour, 1.5]]) {
          context.strokeStyle = stroke;
          context.lineWidth = width;
          context.setLineDash(dash);
          context.beginPath();
          context.moveTo(xOf(step), 0);
          context.lineTo(xOf(step), height);
          context.stroke();
        }
        context.setLineDash([]);
      };
      view.shown().slice(0, 60).forEach((finding) => mark(finding.step, Medic.colour(finding.severity), []));
      view.marks.treatments.forEach((treatment) => mark(treatment.step, Medic.colour("fine"), [5, 4]));
    };
    const labels = (context, one) => {
      const every = Math.ceil(11 / box.row);
      const marked = new Set(view.shown().flatMap((finding) => finding.where));
      context.textAlign = "right";
      context.textBaseline = "middle";
      one.layers.forEach((name, i) => {
        const special = name === layer;
        if (!special && (i % every || Math.abs(one.layers.indexOf(layer) - i) < every)) return;
        context.font = `${special || marked.has(name) ? 600 : 400} 11px ${FONT}`;
        context.fillStyle = Medic.colour(special ? "accent" : marked.has(name) ? "text" : "muted");
        context.fillText(fitted(context, name, box.left - 12), box.left - 8, (i + 0.5) * box.row);
      });
      const at = one.layers.indexOf(layer);
      context.fillStyle = Medic.colour("accent");
      context.fillRect(box.left - 4, at * box.row, 3, Math.max(box.row, 2));
    };
    // The end of a layer's name says most: it is the beginning that makes room.
    const fitted = (context, name, room) => {
      if (context.measureText(name).width <= room) return name;
      let from = Math.max(1, name.length - 60);
      while (from < name.length - 3 && context.measureText(`…${name.slice(from)}`).width > room) from++;
      return `…${name.slice(from)}`;
    };
    const axis = (context, height) => {
      context.font = `12px ${FONT}`;
      context.fillStyle = Medic.colour("muted");
      context.textBaseline = "top";
      const count = Math.max(2, Math.floor(box.width / 110));
      const size = (view.range[1] - view.range[0]) / count;
      const unit = [1, 2, 2.5, 5, 10].map((times) => times * 10 ** Math.floor(Math.log10(size))).find((step) => step >= size) || size;
      for (let step = Math.ceil(view.range[0] / unit) * unit; step <= view.range[1]; step += unit) {
        context.textAlign = xOf(step) < box.left + 12 ? "left" : xOf(step) > box.left + box.width - 14 ? "right" : "center";
        context.fillText(Medic.tick(step), xOf(step), height + 6);
      }
    };
    const outline = (context, one) => {
      const [row, column] = cursor;
      context.strokeStyle = Medic.colour("text");
      context.lineWidth = 2;
      context.strokeRect(xOf(one.steps[column]) - 1, row * box.row - 1, Math.max(xOf(bounds[column]) - xOf(one.steps[column]), 3) + 2, box.row + 2);
    };

    const cellAt = (event) => {
      const frame = canvas.getBoundingClientRect();
      const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
      if (y >= box.height || y < 0 || x > box.left + box.width) return null;
      const one = map();
      const row = Math.min(one.layers.length - 1, Math.floor(y / box.row));
      const step = Math.max(stepOf(x), view.range[0]);
      let column = one.steps.length - 1;
      while (column > 0 && one.steps[column] > step) column--;
      return { row, column, x, y, empty: step >= bounds[column] };
    };
    const words = ({ row, column, empty }) => {
      const one = map();
      const last = Math.max(one.steps[column], Math.ceil(bounds[column]) - 1);
      const steps = one.other !== one.shown && last > one.steps[column] ? `steps ${Medic.step(one.steps[column])} to ${Medic.step(last)}` : `step ${Medic.step(one.steps[column])}`;
      return [one.layers[row], steps, empty ? "not measured" : cellText(one, row * one.columns + column)];
    };
    const showTip = (cell) => {
      tip.hidden = !cell;
      if (!cell) return;
      const [name, steps, value] = words(cell);
      tip.replaceChildren(el("strong", { text: value }), el("span", { text: `${map().title}, ${steps}` }), el("span", { text: name }));
      const width = tip.offsetWidth;
      tip.style.left = `${Math.max(0, Math.min(cell.x + 14, holder.clientWidth - width))}px`;
      tip.style.top = `${cell.y + 18}px`;
    };

    let pressed = null;
    canvas.addEventListener("pointermove", (event) => {
      const cell = cellAt(event);
      showTip(cell && cell.x >= 0 ? cell : null);
      canvas.style.cursor = cell ? "pointer" : "default";
    });
    canvas.addEventListener("pointerleave", () => showTip(null));
    canvas.addEventListener("pointerdown", (event) => (pressed = cellAt(event)));
    canvas.addEventListener("pointerup", (event) => {
      const cell = cellAt(event);
      if (!cell || !pressed) return;
      if (Math.abs(cell.x - pressed.x) > 12 && pressed.x > box.left) view.zoom(...[stepOf(pressed.x), stepOf(cell.x)].sort((a, b) => a - b));
      else focus(map().layers[cell.row]);
      pressed = null;
    });
    canvas.addEventListener("dblclick", () => view.reset());
    canvas.addEventListener("keydown", (event) => {
      const one = map();
      const [row, column] = cursor || [Math.max(0, one.layers.indexOf(layer)), one.columns - 1];
      const jump = event.shiftKey ? 10 : 1;
      const moved = { ArrowUp: [row - jump, column], ArrowDown: [row + jump, column], ArrowLeft: [row, column - jump], ArrowRight: [row, column + jump] }[event.key];
      if (event.key === "Enter") focus(one.layers[row]);
      else if (event.key === "+" || event.key === "=") view.scale(0.5, one.steps[column]);
      else if (event.key === "-") view.scale(2, one.steps[column]);
      else if (event.key === "0" || event.key === "Escape") view.reset();
      else if (moved) {
        cursor = [Math.min(one.layers.length - 1, Math.max(0, moved[0])), Math.min(one.columns - 1, Math.max(0, moved[1]))];
        draw();
        const cell = { row: cursor[0], column: cursor[1], x: xOf(one.steps[cursor[1]]), y: cursor[0] * box.row };
        showTip(cell);
        Medic.say(words(cell).join(", "));
      } else return;
      event.preventDefault();
    });
    canvas.addEventListener("blur", () => {
      cursor = null;
      showTip(null);
      draw();
    });

    const history = (one, row) => {
      const of = (codes, choose) => Array.from({ length: one.columns }, (_, i) => {
        const at = row * one.columns + i;
        return rounded(decode(one, choose(one.shown[at], codes[at])));
      });
      const measured = Array.from({ length: one.columns }, (_, i) => i).filter((i) => one.shown[row * one.columns + i] !== 0);
      const curve = (name, values, label) => ({
        name,
        label,
        about: name,
        gaps: one.gaps,
        steps: measured.map((i) => one.steps[i]),
        values: measured.map((i) => values[i]),
      });
      const [low, high] = [of(one.other, Math.min), of(one.other, Math.max)];
      const shown = of(one.other, (first) => first);
      const name = one.layers[row];
      if (one.other === one.shown) return [curve(name, shown, one.title.toLowerCase())];
      return [curve(`${name}, p5`, low, ""), curve(name, shown, "the more unusual end"), curve(`${name}, p95`, high, "least to most of a stretch")];
    };

    let detail = null;
    const focus = (name) => {
      const one = map();
      const row = one.layers.indexOf(name);
      if (row < 0) return;
      layer = name;
      pick.value = name;
      if (detail) detail.close();
      detail = new Medic.View(...view.whole);
      detail.marks = view.marks;
      detail.selected = view.selected;
      detail.key = view.key;
      detail.range = view.range;
      detail.zoom = (from, to) => view.zoom(from, to);
      const curves = history(one, row).filter((curve) => curve.steps.length);
      past.replaceChildren(
        curves.length
          ? Medic.chart(detail, curves, { title: name, log: one.log, height: 170, wide: true })
          : el("p", { class: "quiet", text: `${name} was not measured.` }),
      );
      draw();
    };
    const part = {
      ranged: () => {
        draw();
        if (!detail) return;
        detail.range = view.range;
        detail.parts.forEach((one) => one.ranged());
      },
      marked: () => {
        if (view.selected) {
          const named = view.selected.where.find((place) => map().layers.includes(place));
          if (named) layer = named;
        }
        focus(layer);
      },
      restyle: () => {
        render();
        draw();
      },
      remove: () => {
        resized.disconnect();
        if (detail) detail.close();
      },
    };
    const resized = new ResizeObserver(draw);
    resized.observe(holder);
    view.add(part);

    const fillTable = () => {
      const one = map();
      const first = (row) => Array.from({ length: one.columns }, (_, i) => row * one.columns + i);
      const rows = one.layers.map((name, row) => {
        const cells = first(row).filter((at) => one.shown[at] !== 0);
        const finite = cells.filter((at) => one.shown[at] !== NOT_FINITE);
        const codes = finite.flatMap((at) => [one.shown[at], one.other[at]]);
        const text = (code) => (codes.length ? Medic.number(rounded(decode(one, code))) : "–");
        const least = codes.reduce((a, b) => Math.min(a, b), LAST);
        const most = codes.reduce((a, b) => Math.max(a, b), 0);
        const end = (at) => (at === undefined ? "–" : cellText(one, at));
        return [name, end(cells[0]), end(cells[cells.length - 1]), text(least), text(most), String(cells.length - finite.length)];
      });
      table.replaceChildren(
        table.firstChild,
        Medic.table(["Layer", "First", "Last", "Least", "Most", "Stretches not finite"], rows, { label: `${one.title} of each layer` }),
      );
    };

    const note = el("p", { class: "quiet" });
    const whole = el(
      "div",
      { class: "layers" },
      el(
        "div",
        { class: "controls" },
        el("label", { for: select.id, text: "Show" }),
        select,
        el("label", { for: pick.id, text: "Layer" }),
        pick,
      ),
      note,
      legend,
      holder,
      past,
      table,
    );
    requestAnimationFrame(() => choose(0));
    return { element: whole, focus: (name) => focusAnywhere(name) };

    // Shows the layer in the chosen map, or in the first that has it.
    function focusAnywhere(name) {
      if (!map().layers.includes(name)) {
        const other = packed.findIndex((one) => one.layers.includes(name));
        if (other < 0) return false;
        layer = name;
        choose(other);
      }
      focus(name);
      return true;
    }
  };
})();
