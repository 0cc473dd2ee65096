// The rollout browser: filters, a list of groups, and one group with its problem and completions.

const ALL = DATA.rollouts.groups;
const filters = { run: "", b: "", domain: "", kind: "", reward: "", from: null, to: null };
let listed = [], selected = 0, playing = null;

const REWARDS = {
  mixed: (rewards) => new Set(rewards).size > 1,
  right: (rewards) => rewards.every((r) => r >= 1),
  wrong: (rewards) => rewards.every((r) => r <= 0),
};
// The colour scale covers 98 % of the values; the others have the full colour.
function bound(values) {
  const sizes = values.map(Math.abs).sort((a, b) => a - b);
  const size = sizes[Math.floor(0.98 * (sizes.length - 1))] || 1;
  return [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 2.5, 3, 4, 5, 7, 10].find((nice) => nice >= size) ?? Math.ceil(size);
}
const signals = ALL.flatMap((g) => g.rollouts.flatMap((r) => finite(r.delta ?? [])));
const BOUND = { cross: bound(signals), native: bound(ALL.flatMap((g) => g.rollouts.map((r) => r.advantage))) };

function matches(group) {
  const rewards = group.rollouts.map((r) => r.reward);
  return (filters.run === "" || group.run === Number(filters.run)) &&
    ["b", "domain", "kind"].every((key) => filters[key] === "" || group[key] === filters[key]) &&
    (filters.from === null || group.step >= filters.from) &&
    (filters.to === null || group.step <= filters.to) &&
    (filters.reward === "" || REWARDS[filters.reward](rewards));
}

const pips = (group) => el("span", { class: "pips", role: "img",
  "aria-label": `rewards ${group.rollouts.map((r) => number(r.reward)).join(" ")}` },
  group.rollouts.map((r) => el("i", { style: `--r:${Math.round(100 * Math.max(0, Math.min(1, r.reward)))}%` })));

const what = (group) => `${group.b} on ${group.domain}`;
const from = (group) => (group.kind === "cross" ? `from ${group.teacher}` : group.kind);

function drawList() {
  const list = find("rollout-list");
  listed = ALL.filter(matches);
  selected = Math.min(selected, Math.max(0, listed.length - 1));
  list.replaceChildren(...listed.map((group, i) => el("li", { role: "option", id: `group-${i}`,
    "aria-selected": "false", style: `--c:${colour(group.b)}`, onclick: () => select(i) },
    el("span", {}, what(group)), pips(group),
    el("span", { class: "about" }, el("span", {}, [group.suite, from(group)].filter(Boolean).join(", ")), el("span", {}, `step ${group.step}`)))));
  find("rollout-count").textContent = `${listed.length} of ${ALL.length}`;
  select(selected);
}

function select(i) {
  const list = find("rollout-list"), detail = find("rollout-detail");
  list.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
  stop();
  if (!listed.length) {
    list.removeAttribute("aria-activedescendant");
    detail.replaceChildren(el("p", { class: "remark" }, "No group matches these filters."));
    return;
  }
  selected = Math.max(0, Math.min(listed.length - 1, i));
  const item = list.children[selected];
  item.setAttribute("aria-selected", "true");
  list.setAttribute("aria-activedescendant", item.id);
  const above = item.offsetTop - list.offsetTop;
  if (above < list.scrollTop) list.scrollTop = above;
  else if (above + item.offsetHeight > list.scrollTop + list.clientHeight) {
    list.scrollTop = above + item.offsetHeight - list.clientHeight;
  }
  detail.replaceChildren(...drawGroup(listed[selected]));
}

function drawGroup(group) {
  const run = DATA.runs.length > 1 ? `${DATA.runs[group.run].name}, ` : "";
  const facts = { problem: `${group.domain}/${group.split}/${group.index}`, suite: group.suite,
    batch: group.kind === "cross" ? `cross, teacher ${group.teacher}` : "native", "expected answer": group.answer };
  return [
    el("h3", {}, `${run}step ${group.step}, ${what(group)}, ${from(group)}`),
    el("div", { class: "problem" },
      group.parts === null ? el("p", {}, "The problem cannot be rebuilt from this configuration.") : group.parts.map(part),
      el("dl", {}, Object.entries(facts).filter(([, v]) => v !== "").map(([k, v]) =>
        el("div", {}, el("dt", {}, k), el("dd", {}, v))))),
    legend(group),
    el("ol", { class: "completions" },
      el("li", { class: "heads", "aria-hidden": "true" }, el("span", {}, "completion"), el("span", { class: "num" }, "reward"),
        el("span", { class: "num" }, "advantage"), el("span", { class: "reading" }, "read as")),
      group.rollouts.map((rollout) => completion(group, rollout))),
  ];
}

function part(one) {
  if (one.text !== undefined) return el("p", {}, one.text);
  if (!one.frames.length) return el("p", { class: "remark" }, "The picture is left out to keep this page small.");
  const side = Math.min(one.height, 320), isSmall = one.width <= 128 && one.height <= 128;
  const zoom = isSmall ? Math.max(1, Math.round((one.fps ? 64 : 96) / Math.max(16, one.height))) : 1;
  const image = (i, k, times = 1) => el("img", { src: DATA.rollouts.pictures[i], class: isSmall ? "small" : "",
    alt: one.fps ? `frame ${k + 1} of ${one.of}` : "the picture of the problem",
    style: isSmall ? `height:${side * zoom * times}px` : `max-height:${one.fps ? 120 : 320}px` });
  const row = el("div", { class: "frames" }, one.frames.map((i, k) => image(i, k)));
  if (!one.fps) return row;
  const screen = image(one.frames[0], 0, 2);
  screen.className += " screen";
  const button = el("button", { type: "button", class: "play", onclick: () => play(one, screen, row, button) }, "Play");
  const about = one.frames.length < one.of ? `${one.frames.length} of ${one.of} frames, ` : `${one.of} frames, `;
  return el("div", {}, row, el("div", { class: "player" }, button, screen, el("span", { class: "remark" }, `${about}${number(one.fps)} a second`)));
}

function stop() {
  if (playing) clearInterval(playing.timer);
  if (playing) playing.button.textContent = "Play";
  playing?.row.querySelector(".now")?.classList.remove("now");
  playing = null;
}

function play(clip, screen, row, button) {
  const isOn = playing?.button === button;
  stop();
  if (isOn) return;
  let k = -1;
  const next = () => {
    k += 1;
    if (k === clip.frames.length) { stop(); return; }
    screen.src = DATA.rollouts.pictures[clip.frames[k]];
    row.querySelector(".now")?.classList.remove("now");
    row.children[k].classList.add("now");
  };
  button.textContent = "Stop";
  const pace = (1000 / clip.fps) * (clip.of / clip.frames.length);
  playing = { button, row, timer: setInterval(next, pace) };
  next();
}

function legend(group) {
  const limit = BOUND[group.kind] ?? 1, isCross = group.kind === "cross";
  return el("p", { class: "scale" },
    el("span", {}, isCross ? `${signed(-limit, 1)} less probable to the teacher` : `${signed(-limit, 1)} worse than its group`),
    el("i"),
    el("span", {}, isCross ? `more probable ${signed(limit, 1)} nats` : `better ${signed(limit, 1)}`),
    el("span", {}, isCross ? "colour: delta of each token, teacher minus student" : "colour: advantage, the same for all tokens of a completion"));
}

const GLYPHS = { "\n": "\u23ce\n", "\t": "\u21e5\t" };
const visible = (text) => text.replace(/[\n\t]/g, (mark) => GLYPHS[mark]);

function completion(group, rollout) {
  const isCross = group.kind === "cross", limit = BOUND[group.kind] ?? 1;
  const texts = rollout.tokens ? rollout.tokens.map((i) => DATA.rollouts.token_texts[i]) : [rollout.text];
  const describe = texts.map((text, i) => {
    const value = isCross ? rollout.delta?.[i] : rollout.advantage;
    if (value === null || value === undefined) return JSON.stringify(text);
    return isCross
      ? `${JSON.stringify(text)}  \u03b4 = ${signed(value, 3)} nats, ${number(Math.exp(value))} \u00d7 as probable to the teacher`
      : `${JSON.stringify(text)}  advantage ${signed(value, 3)}`;
  });
  const spans = texts.map((text, i) => {
    const value = (isCross ? rollout.delta?.[i] : rollout.advantage) ?? 0;
    const depth = Math.round(62 * Math.min(1, Math.abs(value) / limit));
    const isControl = /^<\|.*\|>$/.test(text);
    return el("span", { class: `t ${value > 0 ? "up" : value < 0 ? "down" : ""}${isControl ? " mute" : ""}`,
      style: depth ? `--m:${depth}%` : null, "data-value": value,
      onmouseenter: () => tip(spans[i], describe[i]), onmouseleave: () => tip(null) }, visible(text));
  });
  const tokens = el("div", { class: "tokens", tabindex: 0, role: "group",
    "aria-label": `completion: ${rollout.text}. Use the left and right arrow keys to read its tokens.`,
    onkeydown: (event) => walk(event, spans, describe), onblur: () => { tip(null); unmark(spans); } }, spans);
  if (rollout.length > texts.length && rollout.tokens) {
    tokens.append(el("span", { class: "remark" }, ` \u2026 ${rollout.length - texts.length} more tokens are not shown`));
  }
  const isRight = rollout.reward >= 1;
  return el("li", {}, tokens,
    el("span", { class: `num ${isRight ? "right" : "wrong"}` }, `${number(rollout.reward)}${isRight ? " \u2713" : ""}`),
    el("span", { class: "num" }, signed(rollout.advantage)),
    el("span", { class: "reading" }, rollout.reading === "" ? el("span", { class: "remark" }, "no answer") : rollout.reading));
}

const unmark = (spans) => { for (const span of spans) span.classList.remove("at"); };

function walk(event, spans, describe) {
  const jump = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (jump === undefined) return;
  event.preventDefault();
  const now = spans.findIndex((span) => span.classList.contains("at"));
  const at = Math.max(0, Math.min(spans.length - 1, now + jump));
  unmark(spans);
  spans[at].classList.add("at");
  tip(spans[at], describe[at]);
  say(describe[at]);
}

function step(event) {
  const isTyping = event.target.closest("input, select, textarea, svg");
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping) return;
  const inList = event.target.id === "rollout-list";
  const jump = { j: 1, k: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1, Home: -ALL.length, End: ALL.length } : {}) }[event.key];
  if (jump === undefined) return;
  event.preventDefault();
  select(selected + jump);
  if (!inList && listed.length) say(find("rollout-detail").querySelector("h3").textContent);
}

function rolloutsBar() {
  const values = (key) => [["", "all"], ...[...new Set(ALL.map((g) => g[key]))].map((v) => [v, v])];
  const set = (key) => (value) => { filters[key] = value; drawList(); };
  const steps = ALL.map((g) => g.step);
  const limit = (key, label, value) => el("label", {}, label, el("input", { type: "number", id: `step-${key}`,
    min: Math.min(...steps), max: Math.max(...steps), value, oninput: (event) => {
      filters[key] = event.target.value === "" ? null : Number(event.target.value);
      drawList();
    } }));
  const runs = [...new Set(ALL.map((g) => g.run))].map((i) => [i, DATA.runs[i].name]);
  find("rollouts-bar").append(
    ...(runs.length > 1 ? [choice("Run", [["", "all"], ...runs], set("run"))] : []),
    choice("Branch", values("b"), set("b")),
    choice("Domain", values("domain"), set("domain")),
    choice("Batch", [["", "all"], ["native", "native"], ["cross", "cross"]], set("kind")),
    limit("from", "Steps from", Math.min(...steps)), limit("to", "to", Math.max(...steps)),
    choice("Reward", [["", "any"], ["mixed", "some right"], ["right", "all right"], ["wrong", "all wrong"]], set("reward")),
    el("output", { id: "rollout-count", "aria-label": "groups listed" }));
}

if (ALL.length) {
  show("rollouts");
  const { recorded, runs, max_tokens: cut } = DATA.rollouts;
  const from = runs < DATA.runs.length ? ` from ${runs} of ${DATA.runs.length} runs` : "";
  find("rollouts-note").replaceChildren(
    `A run records the first group of every batch. This page shows ${ALL.length} of ${recorded}${from}, spread evenly over steps, ` +
    `with up to ${cut} tokens of a completion. `, el("span", { class: "noprint" }, "Keys: ", el("kbd", {}, "j"), " ",
      el("kbd", {}, "k"), " or the arrow keys in the list move between groups; left and right in a completion move between its tokens."));
  rolloutsBar();
  find("rollouts-body").append(el("div", { class: "browser" },
    el("ul", { class: "list", id: "rollout-list", role: "listbox", tabindex: 0, "aria-label": "Groups of rollouts" }),
    el("div", { class: "detail", id: "rollout-detail" })));
  document.addEventListener("keydown", step);
  drawList();
}
