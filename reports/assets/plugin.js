// The tab "Medic" of TensorBoard: chooses a run and draws it as the page does. Looks for news while it is open.
const ASSETS = ["uPlot.css", "medic.css", "uPlot.js", "base.js", "curves.js", "layers.js", "report.js"];
const EVERY = 30000; // milliseconds

const loaded = (name) =>
  new Promise((done, failed) => {
    const style = name.endsWith(".css");
    const element = document.createElement(style ? "link" : "script");
    if (style) Object.assign(element, { rel: "stylesheet", href: `./${name}` });
    else element.src = `./${name}`;
    element.addEventListener("load", done);
    element.addEventListener("error", () => failed(new Error(`${name} could not be loaded`)));
    document.head.append(element);
  });

// In the tab's frame addresses are relative to the plugin's own; answers are JSON, errors too.
const ask = async (path) => {
  const answer = await fetch(path);
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error || `${path}: ${answer.status}`);
  return content;
};

export async function render() {
  for (const name of ASSETS) await loaded(name);
  await start();
}

const start = async () => {
  const { Medic } = window.trainmedic;
  const { el } = Medic;
  document.documentElement.lang = "en";
  document.title = "Medic";
  follow(Medic);
  const root = el("div", { id: "medic" });
  document.body.append(root);
  const pick = el("select", { id: "run", onChange: () => show(pick.value) });
  const said = el("span", { class: "quiet", role: "status" });
  const main = el("main", {});
  const again = Medic.button("Reload", () => refresh(true));
  root.append(el("header", { class: "top" }, Medic.brand(), el("label", { for: "run", class: "quiet", text: "Run" }), pick, again, said), main);
  let close = () => {};
  let shown = "";

  const show = async (name, quietly = false) => {
    const text = await fetch(`./run?run=${encodeURIComponent(name)}`).then((answer) => answer.text());
    if (quietly && text === shown) return;
    shown = text;
    const content = JSON.parse(text);
    close();
    if (content.error) {
      close = () => {};
      main.replaceChildren(el("p", { class: "calm", text: content.error }));
      return;
    }
    const [parts, closing] = Medic.run(content.runs[0], content);
    close = closing;
    main.replaceChildren(...parts);
  };
  const badness = ({ state }) => ["fine", "unjudged", "info", "warning", "error"].indexOf(state);
  const refresh = async (asked = false) => {
    try {
      const runs = await ask("./runs");
      const texts = runs.map(({ name, state }) => `${Medic.SIGNS[state]} ${name}`);
      if (texts.join("\n") !== [...pick.options].map((option) => option.text).join("\n")) {
        const worst = runs.reduce((one, other) => (badness(other) > badness(one) ? other : one), runs[0]);
        const chosen = runs.find(({ name }) => name === pick.value) || worst;
        pick.replaceChildren(...runs.map(({ name }, i) => el("option", { value: name, text: texts[i] })));
        if (chosen) pick.value = chosen.name;
      }
      pick.disabled = !runs.length;
      if (runs.length) await show(pick.value, !asked && Boolean(shown));
      else main.replaceChildren(el("p", { class: "quiet", text: "No run here was watched by trainmedic. A run has a logdir: trainmedic.watch(..., logdir=...), or trainmedic report LOG --tensorboard DIR." }));
      said.textContent = asked ? "up to date" : "";
    } catch (error) {
      said.textContent = `not reached: ${error.message}`;
    }
  };
  await refresh();
  setInterval(() => document.visibilityState === "visible" && refresh(), EVERY);
};

// TensorBoard has a theme of its own, and its frame is beside ours: the tab follows it.
const follow = (Medic) => {
  const dark = () => window.parent.document.body.classList.contains("dark-mode");
  const adopt = () => Medic.setTheme(dark() ? "dark" : "light", false);
  try {
    adopt();
    new MutationObserver(adopt).observe(window.parent.document.body, { attributes: true, attributeFilter: ["class"] });
  } catch {
    // a page that may not look at its frame goes by what the system prefers
  }
};
