// Curves over the steps of a run, drawn by uPlot: findings shaded, treatments marked, values that are not finite shown.
"use strict";

(() => {
  const { el } = Medic;
  const LINES = ["line-1", "line-2", "line-3", "line-4", "line-5", "line-6"];
  const SEVERITIES = ["info", "warning", "error"];
  const LINED = 5; // findings whose onset is a line, the others have ticks
  const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";

  // What the charts and maps of one run share: the steps in view, the cursor, and which finding is looked at.
  Medic.View = class {
    constructor(first, last) {
      this.whole = [first, Math.max(last, first + 1)];
      this.range = this.whole;
      this.marks = { findings: [], treatments: [] };
      this.selected = null;
      this.parts = new Set();
      this.key = Medic.id("view");
      this.stop = Medic.onTheme(() => this.parts.forEach((part) => part.restyle()));
    }
    add(part) {
      this.parts.add(part);
    }
    zoom(from, to) {
      const [first, last] = this.whole;
      const least = Math.max((last - first) / 1e5, 1);
      if (to - from < least) [from, to] = [(from + to - least) / 2, (from + to + least) / 2];
      this.range = [Math.max(first, from), Math.min(last, to)];
      if (this.range[0] >= this.range[1]) this.range = this.whole;
      this.parts.forEach((part) => part.ranged());
    }
    scale(factor, around = (this.range[0] + this.range[1]) / 2) {
      this.zoom(around - (around - this.range[0]) * factor, around + (this.range[1] - around) * factor);
    }
    reset() {
      this.zoom(...this.whole);
    }
    point(step) {
      this.parts.forEach((part) => part.pointed && part.pointed(step));
    }
    select(finding) {
      this.selected = finding;
      this.parts.forEach((part) => part.marked());
    }
    shown() {
      return this.selected ? [this.selected] : this.marks.findings.filter((finding) => finding.root);
    }
    close() {
      this.stop();
      this.parts.forEach((part) => part.remove && part.remove());
      this.parts.clear();
    }
    // Shades from the onset of each finding to its end; where several overlap, for the worst of them.
    shade(context, x, top, bottom, right) {
      const end = (finding) => (finding.until === null ? right : Math.min(x(finding.until), right));
      const spans = this.shown().map((finding) => [x(finding.step), end(finding), SEVERITIES.indexOf(finding.severity)]);
      const edges = [...new Set(spans.flatMap(([from, to]) => [from, to]))].sort((a, b) => a - b);
      for (let i = 0; i + 1 < edges.length; i++) {
        const here = spans.filter(([from, to]) => from <= edges[i] && to >= edges[i + 1]).map((span) => span[2]);
        if (!here.length) continue;
        context.fillStyle = Medic.colour(`${SEVERITIES[Math.max(...here)]}-shade`);
        context.fillRect(edges[i], top, edges[i + 1] - edges[i], bottom - top);
      }
    }
    // Marks onsets, of the first findings as lines and of others as ticks, and treatments.
    mark(context, x, top, bottom) {
      const ratio = devicePixelRatio || 1;
      context.save();
      context.lineWidth = 1.5 * ratio;
      this.shown().slice(0, 200).forEach((finding, i) => {
        context.strokeStyle = Medic.colour(finding.severity);
        line(context, x(finding.step), i < LINED ? top : bottom - 7 * ratio, bottom, []);
      });
      for (const treatment of this.marks.treatments) {
        const at = x(treatment.step);
        context.strokeStyle = context.fillStyle = Medic.colour(treatment.outcome === "kept" ? "fine" : "muted");
        line(context, at, top, bottom, [4 * ratio, 3 * ratio]);
        diamond(context, at, top + 6 * ratio, 5 * ratio);
      }
      context.restore();
    }
  };

  const line = (context, x, top, bottom, dash) => {
    context.setLineDash(dash);
    context.beginPath();
    context.moveTo(x, top);
    context.lineTo(x, bottom);
    context.stroke();
    context.setLineDash([]);
  };
  const diamond = (context, x, y, size) => {
    context.beginPath();
    context.moveTo(x, y - size);
    context.lineTo(x + size, y);
    context.lineTo(x, y + size);
    context.lineTo(x - size, y);
    context.fill();
  };

  // Steps and values of a curve as uPlot takes them: null breaks the line, at holes and at what is not finite.
  const aligned = (curve) => {
    const steps = [];
    const values = [];
    let gap = 0;
    for (let i = 0; i < curve.steps.length; i++) {
      while (gap < curve.gaps.length && curve.steps[i] >= curve.gaps[gap][1]) {
        steps.push((curve.gaps[gap][0] + curve.gaps[gap][1]) / 2);
        values.push(null);
        gap++;
      }
      if (steps.length && curve.steps[i] <= steps[steps.length - 1]) {
        if (curve.steps[i] < steps[steps.length - 1]) continue;
        steps.pop();
        values.pop();
      }
      steps.push(curve.steps[i]);
      values.push(Number.isFinite(curve.values[i]) ? curve.values[i] : null);
    }
    return [steps, values];
  };

  const stepsWhere = (curve, holds) => Array.from(curve.steps).filter((_, i) => holds(curve.values[i]));

  // The value of a curve at the recorded step nearest to `step`, its own NaN included; null within a hole or outside.
  const valueAt = (curve, step) => {
    const { steps, values, gaps } = curve;
    if (!steps.length || gaps.some(([from, to]) => step > from && step < to)) return null;
    let low = 0;
    let high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < step) low = middle + 1;
      else high = middle;
    }
    if (low && step - steps[low - 1] < steps[low] - step) low--;
    return { step: steps[low], value: values[low] };
  };

  Medic.openCurve = (packed, name) => ({
    ...packed,
    name,
    steps: Medic.unpack(packed.steps),
    values: Medic.unpack(packed.values),
  });

  const shortName = (name, all) => {
    const percentile = name.match(/^(.*), p(\d+)$/);
    if (percentile) return percentile[2] === "50" ? "median layer" : "layers p5 to p95";
    if (name === "gradient/norm") return "whole model";
    const prefixes = new Set(all.map((other) => other.split("/")[0]));
    return all.length > 1 && prefixes.size === all.length ? name.split("/")[0] : name.replace(/^(time|memory|optimizer)\//, "").replace("_", " ");
  };

  // A chart of curves ({name, steps, values, gaps, unit ...}) in `view`. Names ending in p5 and p95 bound a band.
  // `options`: title, log, height, about. Returns a figure; drag zooms, arrows move the cursor, + - 0 zoom.
  Medic.chart = (view, curves, options) => {
    const names = curves.map((curve) => curve.name);
    const unit = curves[0].unit || "";
    const labels = curves.map((curve) => curve.label || shortName(curve.name, names));
    const low = names.findIndex((name) => name.endsWith(", p5"));
    const high = names.findIndex((name) => name.endsWith(", p95"));
    const inBand = (i) => i === low || i === high;
    const positive = curves.every((curve) => curve.values.every((value) => !(value < 0))) && curves.some((curve) => curve.values.some((value) => value > 0));
    let log = options.log && positive;
    let colours = [];
    const data = uPlot.join(curves.map(aligned));
    const logData = () => [data[0], ...data.slice(1).map((values) => values.map((value) => (value !== undefined && !(value > 0) ? null : value)))];
    const odds = curves.map((curve) => stepsWhere(curve, (value) => !Number.isFinite(value)));
    const noughts = curves.map((curve) => stepsWhere(curve, (value) => value === 0));
    let plot = null;

    const values = curves.map(() => el("span", { class: "value" }));
    const keys = curves.map((curve, i) =>
      el("span", { class: "key", title: curve.about || curve.name, hidden: i === low && high >= 0 }, el("i", { class: inBand(i) ? "swatch band" : "swatch" }), el("span", { text: labels[i] }), values[i]),
    );
    const where = el("span", { class: "at" });
    const field = el("div", {
      class: "plot",
      tabindex: "0",
      role: "group",
      "aria-roledescription": "chart",
      "aria-label": `${options.title}. ${curves.map((curve, i) => describe(curve, labels[i])).join(". ")}. Arrow keys move through the steps; plus, minus and 0 zoom.`,
    });
    const scaleButton = positive
      ? Medic.button("log", () => setLog(!log), { class: "toggle", "aria-pressed": String(log), title: "Logarithmic scale" })
      : null;
    const figure = el(
      "figure",
      { class: `chart ${options.wide ? "wide" : ""}` },
      el("figcaption", {}, el("h3", { text: options.title }), where, scaleButton),
      el("div", { class: "keys" }, keys),
      field,
    );

    const restyle = () => {
      colours = curves.map((curve, i) => curve.colour || Medic.colour(inBand(i) ? "band" : LINES[(low >= 0 && i > low ? i - 1 : i) % LINES.length]));
      keys.forEach((key, i) => (key.firstChild.style.background = colours[i]));
      build();
    };
    const setLog = (wanted) => {
      log = wanted;
      scaleButton.setAttribute("aria-pressed", String(log));
      build();
    };
    const show = (step) => {
      where.textContent = step === null ? "" : `step ${Medic.step(step)}`;
      const at = (curve) => (step === null ? { value: curve.values[curve.values.length - 1] } : valueAt(curve, step));
      curves.forEach((curve, i) => {
        const found = at(curve);
        const text = (one) => (one ? Medic.number(one.value, curve.unit) : "–");
        values[i].textContent = i === high && low >= 0 ? `${text(at(curves[low]))} to ${text(found)}` : text(found);
        values[i].classList.toggle("odd", Boolean(found) && !Number.isFinite(found.value));
      });
    };

    const build = () => {
      const width = Math.max(200, field.clientWidth || 560);
      const axis = { stroke: Medic.colour("muted"), font: FONT, grid: { stroke: Medic.colour("grid"), width: 1 }, ticks: { show: false } };
      if (plot) plot.destroy();
      plot = new uPlot(
        {
          width,
          height: options.height || 200,
          padding: [10, 22, 0, 0],
          legend: { show: false },
          cursor: { sync: { key: view.key, setSeries: false }, drag: { x: true, y: false, setScale: false }, y: false, points: { size: 6 } },
          scales: {
            x: { time: false, range: () => view.range },
            y: log ? { distr: 3, range: (u, from, to) => logRange(from, to) } : {},
          },
          axes: [
            { ...axis, size: 28, space: 80, values: (u, splits) => splits.map((split) => (split === null ? "" : Medic.tick(split))) },
            {
              ...axis,
              size: 62,
              space: 34,
              ...(log ? { splits: (u) => decades(u.scales.y.min, u.scales.y.max, u.bbox.height / (devicePixelRatio || 1)), filter: (u, splits) => splits } : {}),
              values: (u, splits) => splits.map((split) => (split === null ? "" : Medic.tick(split, unit))),
            },
          ],
          series: [
            {},
            ...curves.map((curve, i) => ({
              stroke: colours[i],
              width: inBand(i) ? 0 : 1.6,
              points: { show: curve.steps.length === 1, size: 6 },
            })),
          ],
          bands: low >= 0 && high >= 0 ? [{ series: [high + 1, low + 1], fill: Medic.colour("band-fill") }] : [],
          hooks: {
            drawClear: [(u) => clipped(u, (x, top, bottom, right) => view.shade(u.ctx, x, top, bottom, right))],
            draw: [
              (u) =>
                clipped(u, (x, top, bottom) => {
                  view.mark(u.ctx, x, top, bottom);
                  crosses(u);
                  if (log) zeros(u);
                }),
            ],
            setCursor: [(u) => show(u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : null)],
            setSelect: [
              (u) => {
                if (u.select.width > 4) view.zoom(u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x"));
                u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
              },
            ],
          },
        },
        log ? logData() : data,
        field,
      );
      plot.over.addEventListener("dblclick", () => view.reset());
    };
    const clipped = (u, draw) => {
      u.ctx.save();
      u.ctx.beginPath();
      u.ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
      u.ctx.clip();
      draw((step) => u.valToPos(step, "x", true), u.bbox.top, u.bbox.top + u.bbox.height, u.bbox.left + u.bbox.width);
      u.ctx.restore();
    };
    // Each of these steps that has room beside the one before it.
    const apart = (u, steps, room, each) => {
      let last = -Infinity;
      for (const step of steps) {
        const x = u.valToPos(step, "x", true);
        if (Math.abs(x - last) < room) continue;
        last = x;
        each(x);
      }
    };
    // What is not finite has no height: a cross at the upper edge, where it would have left the chart.
    const crosses = (u) => {
      const size = 4 * (devicePixelRatio || 1);
      const y = u.bbox.top + 2 * size;
      u.ctx.strokeStyle = Medic.colour("error");
      u.ctx.lineWidth = 2 * (devicePixelRatio || 1);
      u.ctx.beginPath();
      for (const steps of odds) {
        apart(u, steps, 2 * size, (x) => {
          u.ctx.moveTo(x - size, y - size);
          u.ctx.lineTo(x + size, y + size);
          u.ctx.moveTo(x + size, y - size);
          u.ctx.lineTo(x - size, y + size);
        });
      }
      u.ctx.stroke();
    };
    // Zero has no place on a logarithmic scale: a triangle at the lower edge points at it.
    const zeros = (u) => {
      const size = 4 * (devicePixelRatio || 1);
      const y = u.bbox.top + u.bbox.height;
      noughts.forEach((steps, i) => {
        if (inBand(i)) return;
        u.ctx.fillStyle = colours[i];
        apart(u, steps, 2 * size, (x) => {
          u.ctx.beginPath();
          u.ctx.moveTo(x - size, y - 1.6 * size);
          u.ctx.lineTo(x + size, y - 1.6 * size);
          u.ctx.lineTo(x, y);
          u.ctx.fill();
        });
      });
    };

    field.addEventListener("keydown", (event) => {
      const [from, to] = view.range;
      const jump = (to - from) / (event.shiftKey ? 10 : 100);
      const now = plot.cursor.left >= 0 ? plot.posToVal(plot.cursor.left, "x") : from;
      const act = {
        ArrowLeft: () => point(now - jump),
        ArrowRight: () => point(now + jump),
        Home: () => point(from),
        End: () => point(to),
        "+": () => view.scale(0.5, now),
        "=": () => view.scale(0.5, now),
        "-": () => view.scale(2, now),
        0: () => view.reset(),
        Escape: () => view.reset(),
      }[event.key];
      if (!act || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      act();
    });
    const point = (step) => {
      const [from, to] = view.range;
      const within = Math.min(to, Math.max(from, step));
      plot.setCursor({ left: plot.valToPos(within, "x"), top: 10 });
      Medic.say(`Step ${Medic.step(within)}: ${labels.map((label, i) => `${label} ${values[i].textContent}`).join(", ")}`);
    };

    const resized = new ResizeObserver(() => {
      if (plot && field.clientWidth > 0 && Math.abs(field.clientWidth - plot.width) > 1) plot.setSize({ width: field.clientWidth, height: plot.height });
    });
    const part = {
      ranged: () => plot && plot.setScale("x", { min: view.range[0], max: view.range[1] }),
      marked: () => plot && plot.redraw(false),
      restyle: () => plot && restyle(),
      remove: () => {
        resized.disconnect();
        if (plot) plot.destroy();
      },
    };
    view.add(part);
    // The width is known once the figure is on the page.
    requestAnimationFrame(() => {
      restyle();
      show(null);
      resized.observe(field);
    });
    return figure;
  };

  const logRange = (from, to) => {
    if (from === null || to === null || !(from > 0)) return [0.1, 1];
    const room = Math.max(Math.log10(to / from) * 0.06, 0.02);
    return [from / 10 ** room, to * 10 ** room];
  };
  // Ticks of a logarithmic scale: decades as far apart as fits, and over less than two of them also what lies between.
  const decades = (from, to, height) => {
    const [low, high] = [Math.log10(from), Math.log10(to)];
    const most = Math.max(2, Math.floor(height / 34));
    const spread = (marks, every) => {
      const found = [];
      for (let power = Math.floor(low); power <= Math.ceil(high); power++) {
        if (power % every === 0) marks.forEach((mark) => found.push(Number((mark * 10 ** power).toPrecision(3))));
      }
      return found.filter((mark) => mark >= from && mark <= to);
    };
    for (const marks of [[1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 5], [1, 3]]) {
      const found = spread(marks, 1);
      if (found.length <= most && high - low < 2.5) return found;
    }
    return spread([1], Math.max(1, Math.ceil((high - low) / most)));
  };

  const describe = (curve, label) => {
    const odd = curve.not_finite ? `, ${curve.not_finite} values not finite` : "";
    const holes = curve.gaps.length ? `, ${curve.gaps.length} gaps` : "";
    return curve.count === undefined ? label : `${label}: from ${curve.first} to ${curve.last}, least ${curve.least}, most ${curve.most}${odd}${holes}`;
  };
})();
