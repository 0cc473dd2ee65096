// The learning curves: a row per metric, a chart per domain, of one run or the mean over seeds.

const ROWS = [
  { q: "reward", title: "Reward", unit: "0 to 1", from: 0, to: 1, about:
    "Mean reward of a batch. Solid: native batches, whose rewards train the branch. Dashed: cross batches on another branch's domain, whose rewards do not." },
  { q: "accuracy", title: "Accuracy of batches", unit: "0 to 1", from: 0, to: 1, unlike: "reward", about:
    "Share of rollouts with reward 1 or more." },
  { q: "measured", title: "Held-out accuracy", unit: "0 to 1", from: 0, to: 1, about:
    "On the same held-out problems for all models. Whiskers are 95 % intervals over problems, or over seeds if several runs are shown." },
  { q: "overlap", title: "Top-k overlap with the teacher", unit: "0 to 1", to: 1, about:
    "The share of the k most probable tokens that student and teacher have in common, on the student's tokens of cross batches." },
  { q: "symmetric_kl", title: "Symmetric KL to the teacher", unit: "nats", from: 0, about:
    "KL(student || teacher) + KL(teacher || student), on the same tokens." },
  { q: "delta_mean", title: "The teacher's signal", unit: "nats", about:
    "Mean of delta, a token's log-probability under the teacher minus under the student. Its negative estimates KL(student || teacher)." },
  { q: "entropy", title: "Entropy", unit: "nats", from: 0, about: "Mean entropy of the student's tokens." },
  { q: "length", title: "Length", unit: "tokens", about: "Mean tokens of a completion." },
  { q: "truncated", title: "Truncated", unit: "0 to 1", from: 0, about: "Share of completions cut off at the token limit." },
  { q: "frac_reward_zero_std", title: "Zero-variance groups", unit: "0 to 1", from: 0, to: 1, about:
    "Share of groups whose rewards are equal, so that their advantage is zero." },
];
const TOTALS = [
  ["grad_norm", "Gradient norm", "before clipping"],
  ["sampled_tokens", "Sampled tokens", "so far"],
  ["scored_tokens", "Scored tokens", "as a teacher, so far"],
  ["seconds", "Time of a step", "seconds"],
];
// 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; above, the normal's is used.
const T = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16,
  2.145, 2.131, 2.12, 2.11, 2.101, 2.093, 2.086];
// The default band is the range: a t interval of few seeds is too wide to be useful.
const MANY = DATA.groups.some((group) => group.runs.length >= 5);
const curves = { group: 0, smooth: 0.5, band: MANY ? "t" : "range", suite: "", hidden: new Set() };

// An exponential moving average with bias correction; gaps stay gaps.
function smoothed(values, weight) {
  let sum = 0, mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return sum / mass;
  });
}

function spread(values, band) {
  const n = values.length, mean = values.reduce((a, b) => a + b, 0) / n;
  if (n < 2) return [mean, null, null];
  if (band === "range") return [mean, Math.min(...values), Math.max(...values)];
  const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / (n - 1);
  const half = (T[n - 2] ?? 1.96) * Math.sqrt(variance / n);
  return [mean, mean - half, mean + half];
}

// Merge the same line of several runs into their mean and a band.
function together(lines) {
  if (lines.length === 1) return lines[0];
  const x = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const at = lines.map((line) => new Map(line.x.map((step, i) => [step, line.y[i]])));
  const columns = x.map((step) => {
    const values = finite(at.map((values) => values.get(step)));
    return values.length ? spread(values, curves.band) : [null, null, null];
  });
  const [y, low, high] = [0, 1, 2].map((k) => columns.map((column) => column[k]));
  return { ...lines[0], x, y, low, high };
}

// Clip an interval to the range of its metric.
const within = (values, { from = null, to = null }) => values && values.map((value) =>
  value === null ? null : Math.min(to ?? Infinity, Math.max(from ?? -Infinity, value)));

function linesOf(runs, pick, isSmooth, limits = {}) {
  const found = new Map();
  for (const run of runs) {
    for (const line of pick(run)) {
      const key = [line.b, line.kind, line.teacher, line.domain].join("/");
      if (!found.has(key)) found.set(key, []);
      const y = isSmooth ? smoothed(line.y, curves.smooth) : line.y;
      const hasRaw = isSmooth && curves.smooth > 0 && runs.length === 1 && line.kind !== "cross";
      const raw = hasRaw ? line.y : undefined;
      found.get(key).push({ ...line, y, raw });
    }
  }
  return [...found.values()].map(together).map((line) => ({
    ...line, low: within(line.low, limits), high: within(line.high, limits),
    color: colour(line.b), dash: line.kind === "cross",
    name: line.teacher ? `${line.b} from ${line.teacher}` : line.b || "run",
  })).filter((line) => !curves.hidden.has(line.b));
}

function rowLines(row, runs) {
  if (row.q === "measured") {
    return linesOf(runs, (run) => run.measured.filter((m) => m.suite === curves.suite), false, row)
      .map((line) => ({ ...line, marks: true }));
  }
  return linesOf(runs, (run) => run.series.filter((line) => line.q === row.q), true, row);
}

function drawRow(row, runs, stages, total) {
  const cursor = [];
  const lines = rowLines(row, runs);
  if (!lines.length) return null;
  const domains = runs[0].domains.filter((d) => lines.some((line) => line.domain === d));
  const span = extent(lines, row);
  return el("div", { class: "row", "data-quantity": row.q }, el("h3", {}, row.title), el("p", { class: "remark" }, row.about),
    el("div", { class: "facets" }, domains.map((domain) => chart({
      title: curves.suite && row.q === "measured" ? `${domain}/${curves.suite}` : domain, unit: row.unit,
      lines: lines.filter((line) => line.domain === domain), span, total, stages, group: cursor }))));
}

function drawTotals(runs, stages, total) {
  const cursor = [];
  const charts = TOTALS.map(([q, title, unit]) => {
    const lines = linesOf(runs, (run) => run.series.filter((line) => line.q === q),
      q === "grad_norm" || q === "seconds", { from: 0 });
    if (!lines.length) return null;
    return chart({ title, unit, lines, span: extent(lines, { from: 0 }), total, stages, group: cursor });
  });
  if (charts.every((one) => one === null)) return null;
  return el("div", { class: "row", "data-quantity": "cost" }, el("h3", {}, "Updates and cost"),
    el("p", { class: "remark" }, "One line per branch; tokens are those of completions."),
    el("div", { class: "facets" }, charts));
}

function drawCurves() {
  const runs = DATA.groups[curves.group].runs.map((i) => DATA.runs[i]);
  const longest = runs.reduce((a, b) => (a.total >= b.total ? a : b));
  const last = Math.max(longest.total, ...runs.flatMap((run) => run.series.flatMap((line) => line.x)));
  const same = (row) => row.unlike && runs.every((run) => {
    const values = (q) => JSON.stringify(run.series.filter((l) => l.q === q).map((l) => l.y));
    return values(row.q) === values(row.unlike);
  });
  find("curves-body").replaceChildren(...ROWS.filter((row) => !same(row))
    .map((row) => drawRow(row, runs, longest.stages, last)).concat(drawTotals(runs, longest.stages, last))
    .filter((row) => row !== null));
}

function curvesBar() {
  const redraw = (key, convert = (v) => v) => (value) => { curves[key] = convert(value); drawCurves(); };
  const shown = el("output", {}, String(curves.smooth));
  const slider = el("input", { type: "range", min: 0, max: 0.95, step: 0.05, value: curves.smooth,
    id: "smooth", oninput: () => {
      shown.textContent = slider.value;
      redraw("smooth", Number)(slider.value);
    } });
  const several = DATA.groups.some((group) => group.runs.length > 1);
  const suites = [...new Set(DATA.runs.flatMap((run) => run.measured.map((m) => m.suite)))];
  const models = [...BRANCHES, ...new Set(DATA.runs.flatMap((run) => run.measured.map((m) => m.b))
    .filter((name) => !BRANCHES.includes(name)))];
  find("curves-bar").append(
    ...(DATA.groups.length > 1
      ? [choice("Runs", DATA.groups.map((g, i) => [i, g.label]), redraw("group", Number))] : []),
    ...models.map((name) => {
      const button = el("button", { type: "button", class: "swatch", "aria-pressed": "true",
        style: `--c:${colour(name)}`, onclick: () => {
          if (!curves.hidden.delete(name)) curves.hidden.add(name);
          button.setAttribute("aria-pressed", String(!curves.hidden.has(name)));
          drawCurves();
        } }, name);
      return button;
    }),
    el("label", {}, "Smoothing", slider, shown),
    ...(several ? [choice("Band over seeds", 
      [["range", "smallest to largest"], ["t", "95 % of the mean"]], redraw("band"), curves.band)] : []),
    ...(suites.length > 1
      ? [choice("Held-out suite", suites.map((s) => [s, s || "all"]), redraw("suite"))] : []));
}

if (DATA.runs.some((run) => run.series.length || run.measured.length)) {
  show("curves");
  const names = new Set(DATA.runs.flatMap((run) => run.stages.map(([name]) => name)).filter((n) => n !== "rlvr"));
  const shade = names.size ? ` Shaded: ${[...names].join(" and ")} stages.` : "";
  const longest = Math.max(...DATA.runs.map((run) => run.total));
  const thin = longest > DATA.points ? ` Of long runs about ${DATA.points} steps are drawn.` : "";
  find("curves-title").after(el("p", { class: "remark" },
    el("span", { class: "noprint" }, "Hover, or focus a chart and use the arrow keys, to read values."), `${shade} Faint: before smoothing.${thin}`));
  curvesBar();
  drawCurves();
}
