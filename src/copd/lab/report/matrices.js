// Matrices of overlap and KL between branches at one step, with a slider over the run.

const distances = { run: 0, moment: 0 };
const KINDS = [
  ["overlap", "Top-k overlap", "var(--more)"],
  ["symmetric_kl", "Symmetric KL, nats", "var(--less)"],
];
const pairsOf = (run) => (run.matrices && run.matrices.moments.length ? run.matrices : null);

// The colour scale of a metric spans the whole run, so that colours can be compared over time.
function bounds(pairs, kind) {
  const values = finite(pairs.moments.flatMap((m) =>
    Object.values(m.domains).flatMap((d) => d[kind].flat())));
  return [Math.min(...values), Math.max(...values)];
}

function matrix(models, cells, [kind, title, tint], [low, high]) {
  const depth = (value) => {
    const part = high > low ? (value - low) / (high - low) : 0;
    return `${Math.round(60 * (kind === "overlap" ? 1 - part : part))}%`;
  };
  const cell = (value, i, j) => {
    if (value === null) return el("td", { class: "none" }, el("span", { class: "unseen" }, "not measured"));
    return el("td", { class: i === j ? "own" : "", style: `--tint:${tint};--m:${depth(value)}` }, number(value));
  };
  return el("table", { class: "matrix" },
    el("caption", {}, title),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("span", { class: "unseen" }, "student")), models.map((m) => el("th", { scope: "col" }, m)))),
    el("tbody", {}, cells.map((row, i) => el("tr", {}, el("th", { scope: "row" }, models[i]),
      row.map((value, j) => cell(value, i, j))))));
}

function drawMatrices() {
  const pairs = pairsOf(DATA.runs[distances.run]);
  const moment = pairs.moments[distances.moment];
  find("matrices-body").replaceChildren(el("div", { class: "matrices" },
    DATA.runs[distances.run].domains.filter((domain) => moment.domains[domain]).map((domain) =>
      el("div", { "data-domain": domain }, el("h3", {}, `On ${domain}`), KINDS.map((kind) =>
        matrix(pairs.models, moment.domains[domain][kind[0]], kind, bounds(pairs, kind[0])))))));
}

function matricesBar() {
  const pairs = pairsOf(DATA.runs[distances.run]);
  const last = pairs.moments.length - 1;
  const where = (i) => `step ${pairs.moments[i].step}` + (pairs.moments[i].stage ? `, ${pairs.moments[i].stage}` : "");
  const shown = el("output", {}, where(last));
  const slider = el("input", { type: "range", min: 0, max: last, step: 1, value: last, id: "moment",
    "aria-valuetext": where(last), oninput: () => {
      distances.moment = Number(slider.value);
      shown.textContent = where(distances.moment);
      slider.setAttribute("aria-valuetext", where(distances.moment));
      drawMatrices();
    } });
  distances.moment = last;
  const known = DATA.runs.map((run, i) => [i, run.name]).filter(([i]) => pairsOf(DATA.runs[i]));
  const runs = choice("Run", known, (value) => {
    distances.run = Number(value);
    matricesBar();
    drawMatrices();
  }, distances.run);
  find("matrices-bar").replaceChildren(...(known.length > 1 ? [runs] : []),
    el("label", {}, "Moment", slider, shown));
  find("matrices-note").textContent = "Row: the student, whose tokens are compared; column: the model it is compared with. " +
    "A stronger colour means further apart, on a scale that spans the whole run. " +
    (pairs.all_pairs ? "" : "This run has no dynamics.jsonl, so only pairs of student and teacher are known, on the teacher's domain and in steps with cross batches. Hatched: not measured.");
}

const firstPairs = DATA.runs.findIndex((run) => pairsOf(run));
if (firstPairs >= 0) {
  distances.run = firstPairs;
  show("matrices");
  matricesBar();
  drawMatrices();
}
