// The page of a comparison: verdict, curves over each other, how each run ended, what differs, findings side by side.
"use strict";

(() => {
  const { el } = Medic;
  const SIGNS = { error: "✕", warning: "!", info: "i", fine: "✓", unjudged: "?" };
  const sign = (state) => el("span", { class: `sign ${state}`, "aria-hidden": "true", text: SIGNS[state] });
  const card = (...table) => el("div", { class: "card" }, Medic.table(...table));
  const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

  // Draws the data of `trainmedic.reports.comparison_page` (as JSON text) into the page.
  Medic.startComparison = (text) => {
    Medic.setTheme(Medic.rememberedTheme(), false);
    const content = JSON.parse(text);
    const [main, ...others] = content.metrics;
    const labels = content.runs.map((run) => run.label);
    const view = new Medic.View(Math.min(...content.runs.map((run) => run.steps[0])), Math.max(...content.runs.map((run) => run.steps[1])));
    const parts = [
      hero(content),
      main ? Medic.section(sentence(main.name), zoom(view), el("div", { class: "card" }, chart(view, main, { height: 320, wide: true })), standings(main)) : null,
      runs(content.runs),
      content.settings.length
        ? Medic.section("Settings that differ", card(["Setting", ...labels], content.settings, { label: "Settings that differ" }))
        : Medic.section("Settings", el("p", { class: "calm", text: "None are known to differ." })),
      findings(content, labels),
      others.length ? Medic.section("Other metrics", el("div", { class: "charts" }, others.map((one) => chart(view, one, {}))), more(others)) : null,
      content.notes.length ? Medic.section("Notes", el("ul", {}, content.notes.map((note) => el("li", { text: note })))) : null,
    ];
    document.getElementById("medic").replaceChildren(Medic.header(content.version), el("main", {}, parts.filter(Boolean)));
    Medic.printing();
  };

  const hero = (content) =>
    el(
      "div",
      { class: `hero ${content.comparable ? "fine" : "unjudged"}` },
      el("div", { class: "verdict" }, el("h1", { text: sentence(content.verdict) })),
      el("p", { class: "quiet", text: content.runs.map((run) => `${run.label} ${run.name}`).join(", ") }),
    );

  const zoom = (view) =>
    el(
      "div",
      { class: "controls", role: "group", "aria-label": "Zoom" },
      Medic.button("Zoom in", () => view.scale(0.5)),
      Medic.button("Zoom out", () => view.scale(2)),
      Medic.button("Whole runs", () => view.reset()),
      el("span", { class: "quiet wide-only", text: "or drag across a chart; double click for the whole runs" }),
    );

  const chart = (view, metric, options) => {
    const title = `${metric.name}, ${metric.side}${metric.hidden ? `, the best ${metric.curves.length}` : ""}`;
    const curves = metric.curves.map((curve) => ({
      ...Medic.openCurve(curve, curve.label),
      get colour() {
        return Medic.colour(`line-${curve.line + 1}`); // a run has one colour in all charts, in either theme
      },
    }));
    return Medic.chart(view, curves, { title, log: false, ...options });
  };

  const standings = (metric) =>
    card(
      ["Run", "Ended at", "Best", "At step", "Against the best"],
      metric.standings.map(([label, end, best, at, , text]) => [label, end, best, at, text]),
      { label: `How the runs ended by ${metric.name}` },
    );

  const runs = (all) =>
    Medic.section(
      "Runs",
      card(
        ["Run", "Name", "Steps", "Read as", "Findings"],
        all.map((run) => [
          run.label,
          run.name,
          `${Medic.step(run.steps[0])} to ${Medic.step(run.steps[1])}`,
          run.format,
          el("span", {}, sign(run.state), ` ${run.verdict}`),
        ]),
        { label: "Runs" },
      ),
    );

  const findings = (content, labels) =>
    Medic.section(
      "Findings",
      content.findings.length
        ? card(
            ["Illness", ...labels],
            content.findings.map(([name, ...cells]) => [name, ...cells.map(([severity, text]) => el("span", {}, severity ? sign(severity) : null, severity ? ` ${text}` : text))]),
            { label: "Findings" },
          )
        : el("p", { class: "calm", text: "None in any of the runs." }),
    );

  const more = (metrics) =>
    card(
      ["Metric", "Best", "Ended at", "Others"],
      metrics.map((metric) => {
        const [[label, end], ...others] = metric.standings;
        return [metric.name, label, end, others.slice(0, 8).map(([other, ended, , , word]) => `${other} ${ended} (${word})`).join(", ")];
      }),
      { label: "Other metrics" },
    );
})();
