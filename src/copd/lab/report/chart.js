// A line chart as SVG: axes, shaded stages, bands, marks, a crosshair that follows the pointer and
// the arrow keys, and the same numbers as a table. The x axis is the step unless the data name it.
// A line is {name, color, dash, marks, x, y, low, high, raw}; a missing value is null.

const AXIS = DATA.axis ?? "step";
const WIDTH = 400, HEIGHT = 216, LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 28;

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  return range(first, Math.floor(high / step + 1e-9) + 1).map((i) => Number((i * step).toPrecision(6)));
}

// All facets of a row share the range of y, so that they can be compared.
function extent(lines, { from = null, to = null } = {}) {
  const values = lines.flatMap((l) => finite([...l.y, ...(l.raw ?? []), ...(l.low ?? []), ...(l.high ?? [])]));
  let low = Math.min(...values, ...finite([from])), high = Math.max(...values, ...finite([to]));
  if (high === low) high = low + (Math.abs(low) * 0.1 || 1);
  const room = (high - low) * 0.05;
  return [from === low ? low : low - room, to === high ? high : high + room];
}

function chart(spec) {
  const { title, unit, lines, span, total, stages, group } = spec;
  const x = (step) => LEFT + (WIDTH - LEFT - RIGHT) * (total ? step / total : 0);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - span[0]) / (span[1] - span[0]));
  const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const picture = svg("svg", {
    class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: 0, role: "slider",
    "aria-label": `${title}, ${unit}, by ${AXIS}: ${lines.map((l) => l.name).join(", ")}`,
    "aria-valuemin": steps[0], "aria-valuemax": steps.at(-1), "aria-valuenow": steps.at(-1),
    "aria-valuetext": readText(lines, steps.at(-1)),
  });
  drawFrame(picture, { x, y, span, total, stages });
  for (const line of lines) drawLine(picture, line, x, y);
  const cursor = picture.appendChild(svg("g"));
  const read = el("div", { class: "read", hidden: true });
  const place = { picture, cursor, read, lines, steps, x, y, at: steps.length };
  follow(place, group);
  group.push(place);
  return el("figure", {}, el("figcaption", {}, title, el("span", {}, unit)),
    el("div", { class: "plot" }, picture, read), numbers(lines, steps));
}

function drawFrame(picture, { x, y, span, total, stages }) {
  let first = 0;
  for (const [name, length] of stages) {
    if (name !== "rlvr") {
      picture.append(svg("rect", { class: "stage", x: x(first), y: TOP,
        width: x(first + length) - x(first), height: HEIGHT - TOP - BOTTOM }));
    }
    first += length;
  }
  for (const value of ticks(span[0], span[1], 4)) {
    picture.append(
      svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 7, y: y(value) + 4, "text-anchor": "end" }, number(value, 4)));
  }
  const bottom = HEIGHT - BOTTOM;
  picture.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: bottom, y2: bottom }));
  for (const step of total ? ticks(0, total, 5).filter(Number.isInteger) : []) {
    const anchor = step === 0 ? "start" : x(step) > WIDTH - 24 ? "end" : "middle";
    picture.append(
      svg("line", { class: "axis", x1: x(step), x2: x(step), y1: bottom, y2: bottom + 4 }),
      svg("text", { x: x(step), y: HEIGHT - 10, "text-anchor": anchor },
        step === 0 ? `${AXIS} 0` : number(step)));
  }
}

function path(line, values, x, y) {
  let pen = "M";
  return line.x.map((step, i) => {
    const value = values[i];
    const part = value === null ? "" : `${pen}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = value === null ? "M" : "L";
    return part;
  }).join("");
}

// A dashed line has dots where it was measured: only some stages have cross batches.
function drawLine(picture, line, x, y) {
  const style = `--c:${line.color}`;
  const add = (tag, attributes) => picture.append(svg(tag, { style, ...attributes }));
  const bounded = line.low ? line.x.map((_, i) => i).filter((i) => line.low[i] !== null) : [];
  const edge = (values) => (i) => `${x(line.x[i]).toFixed(1)} ${y(values[i]).toFixed(1)}`;
  if (line.marks) {
    for (const i of bounded) {
      const at = x(line.x[i]);
      add("line", { class: "whisker", x1: at, x2: at, y1: y(line.low[i]), y2: y(line.high[i]) });
    }
  } else if (bounded.length) {
    const around = [...bounded.map(edge(line.high)), ...bounded.toReversed().map(edge(line.low))];
    add("path", { class: "band", d: `M${around.join("L")}Z` });
  }
  if (line.raw) add("path", { class: "line raw", d: path(line, line.raw, x, y) });
  add("path", { class: `line${line.dash ? " dash" : ""}`, d: path(line, line.y, x, y) });
  const radius = line.marks || line.x.length === 1 ? 2.8 : line.dash && line.x.length <= 60 ? 1.9 : 0;
  line.x.forEach((step, i) => {
    if (radius && line.y[i] !== null) {
      add("circle", { class: line.marks ? "mark" : "point", cx: x(step), cy: y(line.y[i]), r: radius });
    }
  });
}

// The values that the read-out shows at a step.
function valuesAt(lines, step) {
  return lines.map((line) => [line, line.x.indexOf(step)])
    .filter(([line, i]) => i >= 0 && line.y[i] !== null)
    .map(([line, i]) => ({ line, value: line.y[i],
      spread: line.low && line.low[i] !== null && line.high[i] > line.low[i]
        ? ` (${number(line.low[i])} to ${number(line.high[i])})` : "" }));
}

const readText = (lines, step) => [`${AXIS} ${step}`,
  ...valuesAt(lines, step).map(({ line, value, spread }) => `${line.name} ${number(value)}${spread}`)].join(", ");

function pointAt(place, step, isOwn) {
  const { cursor, read, lines, x, y } = place;
  cursor.replaceChildren();
  read.hidden = true;
  if (step === null) return;
  const found = valuesAt(lines, step);
  cursor.append(svg("line", { class: "cross", x1: x(step), x2: x(step), y1: TOP, y2: HEIGHT - BOTTOM }),
    ...found.map(({ line, value }) =>
      svg("circle", { class: "dot", style: `--c:${line.color}`, cx: x(step), cy: y(value), r: 3.6 })));
  if (!isOwn || !found.length) return;
  read.hidden = false;
  read.replaceChildren(el("b", {}, `${AXIS} ${step}`), ...found.map(({ line, value, spread }) =>
    el("span", {}, el("span", { class: "swatch", style: `--c:${line.color}` }, line.name),
      `${number(value)}${spread}`)));
  const part = x(step) / WIDTH;
  read.style.left = part < 0.5 ? `calc(${part * 100}% + 0.8rem)` : "";
  read.style.right = part < 0.5 ? "" : `calc(${(1 - part) * 100}% + 0.8rem)`;
}

function follow(place, group) {
  const { picture, steps, lines } = place;
  const move = (at) => {
    place.at = Math.max(0, Math.min(steps.length - 1, at));
    const step = steps[place.at];
    for (const other of group) pointAt(other, step, other === place);
    picture.setAttribute("aria-valuenow", step);
    picture.setAttribute("aria-valuetext", readText(lines, step));
  };
  const leave = () => { for (const other of group) pointAt(other, null, false); };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const pointer = ((event.clientX - box.left) / box.width) * WIDTH;
    const far = steps.map((step) => Math.abs(place.x(step) - pointer));
    if (far.length) move(far.indexOf(Math.min(...far)));
  });
  picture.addEventListener("pointerleave", leave);
  picture.addEventListener("blur", leave);
  picture.addEventListener("keydown", (event) => {
    const jump = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10,
      Home: -steps.length, End: 2 * steps.length }[event.key];
    if (event.key === "Escape") leave();
    if (jump === undefined || !steps.length) return;
    event.preventDefault();
    move(place.at + jump);
  });
}

function numbers(lines, steps) {
  const body = el("div");
  const fold = el("details", { class: "numbers", ontoggle: () => {
    if (!fold.open || body.firstChild) return;
    body.append(el("table", {},
      el("thead", {}, el("tr", {}, [AXIS, ...lines.map((l) => l.name)].map((n) => el("th", { scope: "col" }, n)))),
      el("tbody", {}, steps.map((step) => el("tr", {}, el("th", { scope: "row" }, String(step)),
        lines.map((line) => el("td", {}, number(line.y[line.x.indexOf(step)] ?? null, 4))))))));
  } }, el("summary", {}, "Numbers"), body);
  return fold;
}
