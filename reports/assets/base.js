// What all pictures share: elements, numbers for people, arrays from base64, colours of the theme.
"use strict";

const Medic = {};
window.trainmedic = { Medic };

(() => {
  // An element with properties, listeners (`onClick`) and children. Text is always set as text.
  Medic.el = (tag, properties = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (value === undefined || value === null || value === false) continue;
      if (key.startsWith("on")) element.addEventListener(key.slice(2).toLowerCase(), value);
      else if (key === "text") element.textContent = value;
      else if (key === "class") element.className = value;
      else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  };

  // A number as the other reports write it: three significant digits, whole ones in full, NaN and infinities by name.
  Medic.number = (value, unit = "") => {
    if (value === null || value === undefined) return "–";
    if (Number.isNaN(value)) return "NaN";
    if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
    if (unit === "bytes") return bytes(value);
    const size = Math.abs(value);
    let text;
    if (size === 0) value = 0; // not "-0"
    if (size < 1e7 && (Number.isInteger(value) || size >= 1000)) text = Math.round(value).toLocaleString("en-US");
    else if (size >= 1e7 || size < 1e-4) text = value.toExponential(2).replace(/\.?0*e\+?/, "e");
    else text = String(Number(value.toPrecision(3)));
    return unit ? `${text} ${unit}` : text;
  };

  const bytes = (value) => {
    const units = ["B", "kB", "MB", "GB", "TB"];
    const power = value ? Math.min(4, Math.max(0, Math.floor(Math.log10(Math.abs(value)) / 3))) : 0;
    return `${Number((value / 1000 ** power).toPrecision(4))} ${units[power]}`;
  };

  Medic.tick = (value, unit = "") => {
    if (unit === "bytes") return bytes(value);
    const size = Math.abs(value);
    if (value === 0) return "0";
    if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
    return Number(value.toPrecision(4)).toLocaleString("en-US", { maximumSignificantDigits: 4 });
  };

  Medic.step = (value) => Math.round(value).toLocaleString("en-US");

  Medic.unpack = ({ type, data }) => {
    const raw = atob(data);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new { Float32: Float32Array, Float64: Float64Array, Uint16: Uint16Array, Uint32: Uint32Array }[type](bytes.buffer);
  };

  // The theme: what the system prefers until somebody chooses. Whoever draws is told when it changes.
  const listeners = new Set();
  Medic.onTheme = (listener) => {
    listeners.add(listener);
    return () => listeners.delete(listener);
  };
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  Medic.isDark = () => (document.documentElement.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
  Medic.setTheme = (theme, remember = true) => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    try {
      if (remember) localStorage.setItem("medic-theme", theme || "");
    } catch { /* no storage here: the choice lasts as long as the page */ }
    listeners.forEach((listener) => listener());
  };
  Medic.rememberedTheme = () => {
    try {
      return localStorage.getItem("medic-theme") || "";
    } catch {
      return "";
    }
  };
  prefersDark.addEventListener("change", () => listeners.forEach((listener) => listener()));
  Medic.colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // Says something to those who listen rather than look.
  let voice = null;
  Medic.say = (text) => {
    if (!voice || !voice.isConnected) {
      voice = Medic.el("div", { class: "unseen", "aria-live": "polite", role: "status" });
      (document.querySelector("main") || document.body).append(voice);
    }
    voice.textContent = text;
  };

  // A table; the first cell of each row names it. A cell is text or an element.
  Medic.table = (head, rows, properties = {}) => {
    const { el } = Medic;
    return el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": properties.label || "Table" },
      el(
        "table",
        {},
        head ? el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col", text })))) : null,
        el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, cell))))),
      ),
    );
  };

  let names = 0;
  Medic.id = (prefix) => `${prefix}-${++names}`;

  Medic.section = (title, ...children) => {
    const id = Medic.id("section");
    return Medic.el("section", { "aria-labelledby": id }, Medic.el("h2", { id, text: title }), ...children);
  };

  Medic.button = (text, onClick, properties = {}) =>
    Medic.el("button", { type: "button", onClick, text, ...properties });
})();
