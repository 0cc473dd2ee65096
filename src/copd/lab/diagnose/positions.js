// Student and teacher along a completion: a row per kind of measure, a chart per domain.

const POSITION_ROWS = [
  { title: "Overlap of the top tokens", unit: "0 to 1", to: 1, about:
    "The share of the k most probable tokens that both have in common.", lines: [["overlap", "overlap", "merged"]] },
  { title: "Shared mass", unit: "0 to 1", to: 1, about:
    "The probability that one gives to the other's k most probable tokens.", lines: [
      ["student_top_under_teacher", "teacher's, on the student's top", "b1"],
      ["teacher_top_under_student", "student's, on the teacher's top", "b0"]] },
  { title: "KL", unit: "nats", from: 0, about: "Large where one gives probability to tokens that the other does not expect.", lines: [
    ["reverse_kl", "KL(student || teacher)", "b0"], ["forward_kl", "KL(teacher || student)", "b1"]] },
  { title: "Entropy", unit: "nats", from: 0, about: "Entropy of the next token.", lines: [
    ["student_entropy", "student", "b0"], ["teacher_entropy", "teacher", "b1"]] },
  { title: "The teacher's signal", unit: "nats", about:
    "Mean of delta, the log-probability of the student's token under the teacher minus under the student.",
    lines: [["delta", "delta", "merged"]] },
];

function positionLine(bins, [name, label, color]) {
  const of = (key) => bins.map((bin) => bin.measures[name][key]);
  return { name: label, color: `var(--${color})`, marks: true,
    x: bins.map((bin) => Math.round((bin.first + bin.last) / 2)), y: of("mean"), low: of("low"), high: of("high") };
}

for (const row of POSITION_ROWS) {
  const facets = Object.entries(DATA.domains).map(([domain, { positions }]) => ({
    domain, total: positions.at(-1).last, lines: row.lines.map((line) => positionLine(positions, line)) }));
  const span = extent(facets.flatMap((facet) => facet.lines), row);
  find("positions-body").append(el("div", { class: "row" }, el("h3", {}, row.title),
    el("p", { class: "remark" }, row.about),
    el("div", { class: "bar" }, row.lines.length > 1 ? row.lines.map(([, label, color]) =>
      el("span", { class: "swatch", style: `--c:var(--${color})` }, label)) : []),
    el("div", { class: "facets" }, facets.map(({ domain, total, lines }) =>
      chart({ title: domain, unit: row.unit, lines, span, total, stages: [], group: [] })))));
}
