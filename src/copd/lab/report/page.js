// Shared by all scripts: the data, elements, colours, number formats, the theme and printing.

const DATA = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value === true ? "" : value);
    }
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const el = (tag, attributes = {}, ...children) =>
  fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

// A branch has the same colour in every run of the page.
const BRANCHES = [...new Set(DATA.runs.flatMap((run) => run.branches))];

function colour(name) {
  const place = BRANCHES.indexOf(name);
  if (place >= 0) return `var(--b${place % 8})`;
  return name === "base" ? "var(--base)" : "var(--merged)";
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "\u2013";
  const size = Math.abs(value);
  let text;
  if (size >= 1e6) text = `${Number((value / 1e6).toPrecision(3))} M`;
  else if (size >= 1e4) text = `${Number((value / 1e3).toPrecision(3))} k`;
  else if (size !== 0 && size < 1e-3) text = value.toExponential(1);
  else text = size >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(digits)));
  return text.replaceAll("-", "\u2212");
}

function signed(value, digits = 2) {
  const text = Math.abs(value).toFixed(digits);
  return (Number(text) === 0 ? "" : value > 0 ? "+" : "\u2212") + text;
}

const range = (start, end) => Array.from({ length: end - start }, (_, i) => start + i);
const finite = (values) => values.filter((v) => v !== null && v !== undefined);
const say = (text) => { find("live").textContent = text; };

function choice(label, options, onchange, chosen = options[0][0]) {
  const select = el("select", { onchange: () => onchange(select.value) },
    options.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
  return el("label", {}, label, select);
}

function show(id) {
  find(id).hidden = false;
  document.querySelector(`nav a[href="#${id}"]`).hidden = false;
}

function tip(target, text) {
  const box = find("tip");
  box.hidden = !target;
  if (!target) return;
  box.textContent = text;
  const at = target.getBoundingClientRect();
  const left = Math.min(at.left, document.documentElement.clientWidth - box.offsetWidth - 8);
  box.style.left = `${Math.max(8, left) + window.scrollX}px`;
  box.style.top = `${at.top + window.scrollY - box.offsetHeight - 7}px`;
}

// The page follows the system's theme until the button is used.
const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function nameTheme() {
  const { theme } = document.documentElement.dataset;
  const isDark = theme ? theme === "dark" : prefersDark.matches;
  find("theme").textContent = isDark ? "Light" : "Dark";
  find("theme").setAttribute("aria-label", isDark ? "Use light colours" : "Use dark colours");
  return isDark;
}

nameTheme();
prefersDark.addEventListener("change", nameTheme);
find("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = nameTheme() ? "light" : "dark";
  nameTheme();
});

// Unfold everything before printing, and restore it afterwards.
let unfolded = [];
addEventListener("beforeprint", () => {
  unfolded = [...document.querySelectorAll("details[data-print]:not([open])")];
  for (const fold of unfolded) fold.open = true;
});
addEventListener("afterprint", () => { for (const fold of unfolded) fold.open = false; });

for (const head of document.querySelectorAll("th[data-model]")) {
  const name = head.dataset.model;
  if (DATA.runs.some((run) => run.models.includes(name))) head.style.setProperty("--c", colour(name));
}
