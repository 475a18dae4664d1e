// The page of a run: verdict, curves, findings, treatments, layers, and what was not checked. Of several runs one is chosen.
"use strict";

(() => {
  const { el } = Medic;
  const WORDS = { error: "error", warning: "warning", info: "info", fine: "nothing wrong", unjudged: "not judged" };
  const SIGNS = { error: "✕", warning: "!", info: "i", fine: "✓", unjudged: "?" };
  const LANES = 8;
  Medic.SIGNS = SIGNS;

  const sign = (state) => el("span", { class: `sign ${state}`, "aria-hidden": "true", text: SIGNS[state] });
  const tag = (state) => el("span", { class: `tag ${state}`, text: WORDS[state] });
  const plural = (count, one) => `${count.toLocaleString("en-US")} ${one}${count === 1 ? "" : "s"}`;

  // Draws the document of `trainmedic.reports.picture.document` (as JSON text) into the page.
  Medic.start = (text) => {
    Medic.setTheme(Medic.rememberedTheme(), false);
    const root = document.getElementById("medic");
    const content = JSON.parse(text);
    root.replaceChildren(...Medic.frame(content));
    printing();
  };

  Medic.header = (version, ...others) => {
    const next = () => (Medic.isDark() ? "light" : "dark");
    const button = Medic.button("", () => Medic.setTheme(next()), { class: "theme" });
    const name = () => (button.textContent = `${next() === "dark" ? "Dark" : "Light"} theme`);
    name();
    Medic.onTheme(name);
    return el("header", { class: "top" }, Medic.brand(), el("span", { class: "quiet", text: version }), el("span", { class: "grow" }), ...others, button);
  };
  Medic.brand = () => el("span", { class: "brand" }, mark(), "trainmedic");
  const mark = () => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 24 24");
    svg.setAttribute("aria-hidden", "true");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", "M2 13h4.5l2-7 4 12 3-9 1.5 4H22");
    svg.append(path);
    return svg;
  };

  // Header, the list of runs where there are several, and the chosen run.
  Medic.frame = (content) => {
    const main = el("main", {});
    let close = () => {};
    const show = (index) => {
      close();
      const run = content.runs[index];
      const [parts, closing] = Medic.run(run, content);
      close = closing;
      main.replaceChildren(...(list ? [list.element] : []), ...parts);
      if (list) list.choose(index);
    };
    const list = content.runs.length > 1 ? runList(content, show) : null;
    show(0);
    return [Medic.header(content.version), main];
  };

  const runList = ({ runs, left_out: left }, show) => {
    const buttons = runs.map((run, i) => Medic.button(run.path, () => show(i), { class: "link" }));
    const state = (run) => el("span", {}, sign(run.state), el("span", { class: "unseen", text: WORDS[run.state] }));
    const rows = runs.map((run, i) => [el("span", { class: "name" }, state(run), buttons[i]), run.verdict, `${Medic.step(run.steps[0])} to ${Medic.step(run.steps[1])}`]);
    const element = Medic.section(plural(runs.length, "run"), Medic.table(["Run", "Verdict", "Steps"], rows, { label: "Runs" }));
    element.classList.add("runs");
    if (left) element.append(el("p", { class: "quiet", text: `and ${plural(left, "run")} more, which this page has no room for` }));
    return { element, choose: (index) => buttons.forEach((button, i) => (i === index ? button.setAttribute("aria-current", "true") : button.removeAttribute("aria-current"))) };
  };

  // The parts of one run's page, and what to call before they go.
  Medic.run = (run, content) => {
    const view = new Medic.View(...run.steps);
    view.marks = { findings: run.findings, treatments: run.treatments };
    const curves = Object.fromEntries(Object.entries(run.curves).map(([name, packed]) => [name, Medic.openCurve(packed, name)]));
    const layers = run.maps.length ? Medic.layers(view, run.maps, content.colours, run.findings.filter((finding) => finding.root).flatMap((finding) => finding.where)) : null;
    const chart = (one, options = {}) => Medic.chart(view, one.curves.map((name) => curves[name]), { title: one.title, log: one.log, ...options });
    const main = run.charts.filter((one) => one.main);
    const more = run.charts.filter((one) => !one.main);
    const toLayer = (name) => {
      if (!layers || !layers.focus(name)) return;
      layers.element.scrollIntoView({ behavior: "auto", block: "center" });
    };
    const parts = [
      hero(run),
      glance(view, run, main, chart),
      findings(view, run, toLayer),
      treatments(run),
      main.length > 1 ? Medic.section("Curves", el("div", { class: "charts" }, main.slice(1).map((one) => chart(one)))) : null,
      layers ? Medic.section("Layers", layers.element) : null,
      more.length ? Medic.section("All other curves", others(more, chart)) : null,
      checks(run, content.rules),
      about(run),
    ];
    return [parts.filter(Boolean), () => view.close()];
  };

  const hero = (run) =>
    el(
      "div",
      { class: `hero ${run.state}` },
      el("div", { class: "verdict" }, sign(run.state), el("h1", { text: sentence(run.verdict) })),
      el("p", { class: "quiet" }, el("strong", { class: "path", text: run.path }), `, steps ${Medic.step(run.steps[0])} to ${Medic.step(run.steps[1])}`, run.format === "live" ? "" : `, read as ${run.format}`),
      ...run.treatments.filter(({ outcome }) => outcome === "kept").slice(0, 3).map(treated),
      el("dl", { class: "tiles" }, run.summary.map(([what, value, detail]) => el("div", {}, el("dt", { text: what }), el("dd", {}, el("strong", { text: value }), el("span", { text: detail }))))),
    );
  const treated = ({ change, step, reason }) =>
    el("p", {}, el("strong", { text: `Treated from step ${Medic.step(step)} by ${change.remedy}` }), reason ? `: ${reason}.` : ".");
  const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

  const glance = (view, run, main, chart) => {
    if (!main.length) return null;
    const zoom = el(
      "div",
      { class: "controls", role: "group", "aria-label": "Zoom" },
      Medic.button("Zoom in", () => view.scale(0.5)),
      Medic.button("Zoom out", () => view.scale(2)),
      Medic.button("Whole run", () => view.reset()),
      el("span", { class: "quiet wide-only", text: "or drag across a chart; double click for the whole run" }),
    );
    return Medic.section("At a glance", zoom, el("div", { class: "card" }, lanes(view, run), chart(main[0], { height: 280, wide: true })));
  };

  // A bar for each finding, from its onset to the treatment that ended it or to the end; a diamond for each treatment.
  const lanes = (view, run) => {
    const roots = run.findings.filter((finding) => finding.root);
    if (!roots.length && !run.treatments.length) return null;
    const bars = roots.map((finding) => {
      const button = Medic.button("", () => view.select(view.selected === finding ? null : finding), {
        class: `span ${finding.severity}`,
        "aria-pressed": "false",
        title: `${finding.code} ${finding.name}: ${finding.message}`,
      });
      const again = roots.some((other) => other !== finding && other.code === finding.code);
      const place = again && finding.where.length ? `, ${finding.where[0]}` : "";
      button.append(el("i", {}), el("span", { text: `${finding.code} ${finding.name}${place}` }));
      return button;
    });
    const diamonds = run.treatments.map((treatment) => {
      const text = `${treatment.change.remedy}, step ${Medic.step(treatment.step)}: ${treatment.outcome}`;
      return el("span", { class: `span treatment ${treatment.outcome === "kept" ? "kept" : ""}`, title: text }, el("i", {}), el("span", { text }));
    });
    const place = () => {
      const [from, to] = view.range;
      const share = (step) => Math.min(1, Math.max(0, (step - from) / (to - from)));
      roots.forEach((finding, i) => set(bars[i], share(finding.step), share(finding.until ?? view.whole[1])));
      run.treatments.forEach((treatment, i) => set(diamonds[i], share(treatment.step), share(treatment.step)));
    };
    const set = (element, from, to) => {
      element.firstChild.style.left = `${100 * from}%`;
      element.firstChild.style.width = `${100 * (to - from)}%`;
      const label = element.lastChild;
      const before = from > 0.55; // the name stands where there is more room
      label.style.left = before ? "auto" : `${100 * from}%`;
      label.style.right = before ? `${100 * (1 - from)}%` : "auto";
      label.style.maxWidth = `${100 * (before ? from : 1 - from)}%`;
    };
    place();
    view.add({
      ranged: place,
      marked: () => roots.forEach((finding, i) => bars[i].setAttribute("aria-pressed", String(view.selected === finding))),
      restyle: () => {},
    });
    const many = roots.length + diamonds.length > LANES;
    return el("div", { class: many ? "lanes many" : "lanes", role: "group", "aria-label": "Findings and treatments over the steps", tabindex: many ? "0" : null }, bars, diamonds);
  };

  const findings = (view, run, toLayer) => {
    if (!run.findings.length) {
      const text = run.checked.length ? `None of the ${plural(run.checked.length, "rule")} that could judge this run found anything.` : "No rule could judge this run: what they need is not in its record.";
      return Medic.section("Findings", el("p", { class: "calm" }, text));
    }
    const byId = new Map(run.findings.map((finding) => [finding.id, finding]));
    const roots = run.findings.filter((finding) => finding.root);
    return Medic.section("Findings", roots.map((finding, i) => card(view, run, finding, byId, toLayer, i < 3)));
  };

  const card = (view, run, finding, byId, toLayer, open) => {
    const explained = below(finding, byId, new Set([finding.id]));
    const element = el(
      "details",
      { class: `finding ${finding.severity}`, open: open, id: `finding-${finding.id}` },
      el(
        "summary",
        {},
        el("span", { class: "head" }, sign(finding.severity), el("strong", { text: `${finding.code} ${finding.name}` }), tag(finding.severity), el("span", { class: "quiet", text: since(finding) })),
        el("span", { class: "message", text: sentence(finding.message) }),
      ),
      el(
        "div",
        { class: "body" },
        finding.evidence.length ? part("Evidence", evidence(finding)) : null,
        finding.where.length ? part("Where", places(finding, toLayer)) : null,
        finding.advice ? part("What to do", advice(finding.advice)) : null,
        finding.remedies.length ? part("Remedies", el("p", { text: finding.remedies.join(", ") })) : null,
        finding.advised.length ? part("As code", el("div", {}, finding.advised.map(change))) : null,
        explained.length ? part("Explains", el("ul", { class: "plain" }, explained.map((other) => el("li", {}, sign(other.severity), el("span", {}, el("strong", { text: `${other.code} ${other.name} ` }), `since step ${Medic.step(other.step)}: ${other.message}`))))) : null,
      ),
    );
    return element;
  };
  const below = (finding, byId, seen) =>
    finding.explains.flatMap((id) => {
      if (seen.has(id) || !byId.has(id)) return [];
      seen.add(id);
      return [byId.get(id), ...below(byId.get(id), byId, seen)];
    });
  const since = (finding) => {
    const evident = finding.detected === finding.step ? "" : `, evident at ${Medic.step(finding.detected)}`;
    const sure = finding.confidence < 1 ? `, confidence ${Math.round(100 * finding.confidence)} %` : "";
    return `since step ${Medic.step(finding.step)}${evident}${sure}`;
  };
  const part = (title, content) => el("div", { class: "part" }, el("h3", { text: title }), content);

  const evidence = (finding) =>
    Medic.table(
      ["Quantity", "Seen", "Limit", ""],
      finding.evidence.map((one) => [one.name, el("strong", { text: one.value }), one.limit || "–", one.ratio === null ? "" : against(one.ratio)]),
      { label: `Evidence for ${finding.name}` },
    );
  // How far a number lies from its limit, on a logarithmic scale of three decades to each side.
  const against = (ratio) => {
    const times = ratio >= 1 ? ratio : 1 / ratio;
    const text = times < 1.005 ? "at the limit" : `${Medic.number(Number(times.toPrecision(2)))} times ${ratio >= 1 ? "the limit" : "below the limit"}`;
    const at = 50 + (50 * Math.max(-3, Math.min(3, Math.log10(ratio)))) / 3;
    const bar = el("span", { class: "against", "aria-hidden": "true" }, el("i", {}), el("b", {}));
    bar.firstChild.style.left = `${Math.min(50, at)}%`;
    bar.firstChild.style.width = `${Math.abs(at - 50)}%`;
    return el("span", { class: "ratio" }, bar, text);
  };
  const places = (finding, toLayer) => {
    const names = finding.where.slice(0, 12).map((name) => Medic.button(name, () => toLayer(name), { class: "chip" }));
    const more = finding.where.length - names.length + finding.more;
    return el("p", { class: "chips" }, names, more ? el("span", { class: "quiet", text: `and ${more.toLocaleString("en-US")} more` }) : null);
  };
  // Advice goes: what it usually means, what to do, what else to check. Each begins its own line.
  const advice = (text) => {
    const parts = text.split(/(?=\bDo this:)|(?=\bOtherwise check\b)|(?=\bElse check\b)|(?=\(b\) )|(?=\(c\) )|(?=\(d\) )/);
    return el("div", { class: "advice" }, parts.map((one) => el("p", { class: /^\([b-z]\)/.test(one) ? "step" : "", text: one.trim() })));
  };
  const change = (one) => {
    const said = el("span", { class: "quiet", role: "status" });
    const copy = Medic.button("Copy", () => navigator.clipboard?.writeText(one.code).then(() => (said.textContent = "copied"), () => (said.textContent = "could not copy")));
    return el("div", { class: "change" }, el("p", {}, el("strong", { text: one.remedy }), `: ${one.summary}`), el("div", { class: "code" }, el("pre", { tabindex: "0" }, el("code", { text: one.code })), el("div", { class: "copy" }, said, copy)));
  };

  const treatments = (run) => {
    if (!run.treatments.length && !run.refused.length) return null;
    return Medic.section(
      "Treatments",
      run.treatments.map(treatment),
      run.refused.length ? el("div", { class: "card" }, el("h3", { text: "Refused" }), Medic.table(["Remedy", "Why"], run.refused, { label: "Refused remedies" })) : null,
    );
  };
  const treatment = (one) => {
    const rows = one.compared.map((row) => [row.name, el("span", { text: row.control.text }), el("strong", { text: row.treated.text }), pair(row)]);
    return el(
      "article",
      { class: "card treatment" },
      el(
        "h3",
        {},
        el("span", { text: `${one.change.remedy} ` }),
        el("span", { class: `tag ${one.outcome === "kept" ? "fine" : "info"}`, text: one.outcome }),
      ),
      el("p", { class: "quiet", text: `for ${one.code} ${one.illness}, ${steps(one)}; ${one.trial} trial` }),
      el("p", { text: `${sentence(one.change.summary)}.` }),
      rows.length ? Medic.table(["Compared", sentence(one.columns[0]), sentence(one.columns[1]), ""], rows, { label: `Numbers of ${one.change.remedy}` }) : null,
      one.reason ? el("p", {}, el("strong", { text: `Why ${one.outcome}: ` }), one.reason) : null,
      one.tried ? el("p", { class: "quiet", text: `${sentence(one.tried)}.` }) : null,
      one.lost.length ? Medic.table(["Tried too", "Why it lost"], one.lost, { label: `What lost against ${one.change.remedy}` }) : null,
      one.others.length ? el("dl", { class: "facts" }, one.others.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])) : null,
      one.change.code ? el("details", { class: "numbers" }, el("summary", { text: "The change as code" }), change(one.change)) : null,
    );
  };
  // A controlled trial is made beside the run: what it did not keep was never in the run.
  const steps = ({ trial, outcome, step, decided }) => {
    if (trial === "controlled" && outcome !== "kept") return `tried at step ${Medic.step(step)}`;
    return `from step ${Medic.step(step)}${decided === null || decided < step ? "" : `, decided at step ${Medic.step(decided)}`}`;
  };
  const pair = ({ control, treated }) => {
    if (control.value === null || treated.value === null || control.value < 0 || treated.value < 0) return "";
    const most = Math.max(control.value, treated.value) || 1;
    return el("span", { class: "pair", "aria-hidden": "true" }, [control, treated].map((side) => {
      const bar = el("i", {});
      bar.style.width = `${(100 * side.value) / most}%`;
      return bar;
    }));
  };

  const others = (charts, chart) => {
    const holder = el("div", { class: "charts" });
    const details = el(
      "details",
      { class: "numbers", onToggle: () => details.open && !holder.childElementCount && holder.append(...charts.map((one) => chart(one, { height: 150 }))) },
      el("summary", { text: `${plural(charts.length, "curve")}: ${charts.slice(0, 6).map((one) => one.title).join(", ")}${charts.length > 6 ? " …" : ""}` }),
      holder,
    );
    return details;
  };

  const checks = (run, rules) => {
    const reasons = new Map();
    run.not_checked.forEach(([code, name, reason]) => reasons.set(reason, [...(reasons.get(reason) || []), `${code} ${name}`]));
    const checked = run.checked.map((code) => `${code} ${rules[code] || ""}`.trim());
    return Medic.section(
      "What was checked",
      el("div", { class: "card" },
        reasons.size ? el("h3", { text: `Not checked: ${plural(run.not_checked.length, "rule")}` }) : null,
        reasons.size ? Medic.table(["Rules", "Why not"], [...reasons].map(([reason, names]) => [names.join(", "), reason]), { label: "Not checked" }) : null,
        checked.length ? el("details", { class: "numbers" }, el("summary", { text: `Checked: ${plural(checked.length, "rule")}` }), el("p", { class: "columns" }, checked.map((text) => el("span", { text })))) : null),
    );
  };

  const about = (run) => {
    const list = (title, rows) => rows.length && el("div", { class: "card" }, el("h3", { text: title }), el("dl", { class: "facts" }, rows.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value })])));
    const cards = [list("Cost of watching", run.cost), list("The run", run.run), run.notes.length && el("div", { class: "card" }, el("h3", { text: "Notes" }), el("ul", {}, run.notes.map((text) => el("li", { text }))))].filter(Boolean);
    return cards.length ? Medic.section("About this run", el("div", { class: "abouts" }, cards)) : null;
  };

  // On paper everything is open, and light.
  const printing = () => {
    let closed = [];
    addEventListener("beforeprint", () => {
      closed = [...document.querySelectorAll("details:not([open])")].filter((details) => !details.querySelector(".charts"));
      closed.forEach((details) => (details.open = true));
      if (Medic.isDark()) {
        document.documentElement.dataset.printed = document.documentElement.dataset.theme || "";
        Medic.setTheme("light", false);
      }
    });
    addEventListener("afterprint", () => {
      closed.forEach((details) => (details.open = false));
      const before = document.documentElement.dataset.printed;
      if (before === undefined) return;
      delete document.documentElement.dataset.printed;
      Medic.setTheme(before, false);
    });
  };
  Medic.printing = printing;
})();
