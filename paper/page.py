"""paper/results.md as text: what is claimed, what holds, tables. Knows no statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from copd.lab.study import to_markdown
from copd.lab.study.layout import DASH
from copd.lab.study.moments import ORACLE
from copd.lab.study.power import accuracy_error, minimal_difference, paired_variances
from copd.lab.study.results import OVERALL
from paper import claims, measures
from paper.claims import Claim, Part
from paper.load import HALF, LONG, MAIN, NAMES, REMEDIES, WORLDS, Found

HEAD = """# Results

Written by `python -m paper` from what our studies measured, every problem of every model, which is
in results/ beside this page; nothing below is typed by hand. The studies were declared before
anyone looked at their results (studies/, docs/studies.md; one look at an early tuning run is in
docs/appendix/log.md). Added after first results had been seen: three_branches_long, and in it copd
at half its rate, before any result of its own; the branches of copd as columns of the worlds; MOPD
among the claims of the ablations; and the pilot's remarks about room. Learning rates were tuned
separately (tuning.md); docs/statistics.md says how intervals are computed. All differences are in
points of accuracy, paired over seeds and problems, with 95 % intervals and the probability of being
ahead, unless stated otherwise.
"""

RULE = """A difference **holds** where its interval is on the claimed side of zero, **fails** where
it is on the other side, and is **open** otherwise. "At or above" and "near" hold down to one point
below. Intervals are not adjusted for their number.
"""

SHORT = ("base", "experts: average", "mopd", "copd", "copd: validation", "mixed", ORACLE)
"""Columns that tell the story of a study; the chosen remedy comes before mixed RLVR."""

FOLDED = "<details><summary>Differences, probabilities, headroom, budgets</summary>"

LIMITS = """What limits it: a branch against the expert with as many RLVR steps tells what coupling
costs its domain, the merged model against the branch what the merge costs.
"""


def page(found: Mapping[str, Found], figures: Mapping[str, str]) -> str:
    """The whole page; `figures` are paths by name, relative to it."""
    blocks = [HEAD, _state(found), *_overview(found), *_claims(found)]
    blocks += [*_worlds(found, figures), *_power(found)]
    blocks += [block for name in found for block in _study(found[name], figures)]
    return "\n".join([*blocks, *_how(found)])


def all_claims(found: Mapping[str, Found]) -> list[Claim]:
    """Every claim in every study that can speak of it."""
    listed: list[Claim] = []
    for name in MAIN:
        if name in found:
            own = found[name]
            listed += claims.paper_claims(name, own.summary, own.results.experts)
            listed += claims.copd_claims(name, own.summary, own.results.experts, HALF)
    if "ablations" in found:
        listed += claims.ablation_claims("ablations", found["ablations"].summary)
    if "dynamics" in found:
        listed += measures.dynamics_claims(found["dynamics"])
    if "pilot" in found:
        listed += measures.pilot_claims(found["pilot"])
    if "ratio" in found:
        listed += claims.ratio_claims("ratio", found["ratio"].summary)
    return listed


def _state(found: Mapping[str, Found]) -> str:
    lines = [f"- no results yet: {name}" for name in NAMES if name not in found]
    for name, own in found.items():
        if own.results.missing:
            lines.append(f"- not finished: {name} lacks {', '.join(own.results.missing)}")
    if not lines:
        return "All studies are finished.\n"
    return "\n".join(["What is not there yet:\n", *lines, ""])


def _overview(found: Mapping[str, Found]) -> list[str]:
    """The main studies in a line each."""
    heads = [*SHORT[:-2], "chosen remedy", *SHORT[-2:]]
    rows = []
    for name in (name for name in MAIN if name in found):
        cells = found[name].summary.cells
        short = {c: str(cells[OVERALL, c]) if (OVERALL, c) in cells else DASH for c in SHORT}
        remedy = _chosen(found, {study: world for world, study in WORLDS.items()}.get(name))
        confirmed = cells.get((OVERALL, remedy)) if remedy else None
        short["chosen remedy"] = f"{confirmed} ({remedy})" if confirmed else DASH
        rows.append(f"| {name} | {' | '.join(short[head] for head in heads)} |")
    if not rows:
        return []
    rule = ["---", *("---:" for _ in heads)]
    said = "Overall accuracy in %, means over seeds with 95 % intervals:\n"
    table = [f"| study | {' | '.join(heads)} |", f"| {' | '.join(rule)} |", *rows, ""]
    return ["## In short\n", said, *table]


def _claims(found: Mapping[str, Found]) -> list[str]:
    listed = sorted(all_claims(found), key=lambda claim: claim.text)
    if not listed:
        return []
    lines = ["## The paper's claims\n", RULE, "| claim | study | verdict | measured |"]
    lines.append("| --- | --- | --- | --- |")
    for claim in listed:
        parts = "<br>".join(f"{_escaped(p.text)}: {p.value}, {p.verdict}" for p in claim.parts)
        lines.append(f"| {claim.text} | {claim.study} | **{claim.verdict}** | {parts} |")
    return [*lines, ""]


def _worlds(found: Mapping[str, Found], figures: Mapping[str, str]) -> list[str]:
    if not any(name in found for name in WORLDS.values()):
        return []
    blocks = ["## When does co-evolution pay?\n", *_figure(figures, "worlds")]
    for world, name in WORLDS.items():
        if name in found:
            blocks += [f"### World {world}\n", *_answers(found[name])]
            blocks += [*_limits(found[name]), *_remedies(found, world)]
    if LONG in found:
        own = found[LONG]
        blocks += ["### World conflict, three times the steps\n", *_answers(own), *_limits(own)]
    return blocks


def _answers(own: Found) -> list[str]:
    """Where copd stands, where a study's other rate of it, and how much there is to gain."""
    parts = [
        part
        for column in ("copd", HALF)
        for part in claims.world_answers(own.summary, own.results.experts, column)
    ]
    return _parts([*parts, *claims.ahead(own.summary, OVERALL, ORACLE, "base")])


def _limits(own: Found) -> list[str]:
    """Where copd loses to the experts, if its branches were measured."""
    parts = claims.world_limits(own.summary, own.results.experts)
    return [LIMITS, *_parts(parts)] if parts else []


def _chosen(found: Mapping[str, Found], world: str | None) -> str | None:
    """What the rule chooses among a world's remedies, once all of them are measured."""
    own = found.get(REMEDIES.get(world or "", ""))
    return None if own is None or own.results.missing else claims.chosen_remedy(own.summary)


def _remedies(found: Mapping[str, Found], world: str) -> list[str]:
    """The remedy that the rule chooses, and what the world's study says of it."""
    chosen = _chosen(found, world)
    if chosen is None:
        return []
    if chosen == "copd":
        return ["Of the remedies none was ahead of copd on the validation problems.\n"]
    confirmed = claims.confirmation(found[WORLDS[world]].summary, chosen)
    if not confirmed:
        return [f"Chosen on validation problems: {chosen}. It is not confirmed yet.\n"]
    said = f"Chosen on validation problems: {chosen}. On fresh seeds and test problems:\n"
    return [said, *_parts(confirmed)]


def _parts(parts: Sequence[Part]) -> list[str]:
    words = {"holds": "ahead", "fails": "behind"}
    lines = ["| difference | points | |", "| --- | --- | --- |"]
    for part in parts:
        word = words.get(part.verdict, part.verdict)
        lines.append(f"| {_escaped(part.text)} | {part.value} | {word} |")
    return [*lines, ""]


def _power(found: Mapping[str, Found]) -> list[str]:
    rows = [row for name in MAIN if name in found for row in _seen(found[name])]
    if not rows:
        return []
    return [
        "## Power\n",
        "The error of one model's accuracy is over problems, the largest of all models and "
        "domains. The difference is the smallest true one that a two-sided 5 % test finds in 80 of "
        "100 such studies (docs/statistics.md).\n",
        "| study | error of an accuracy, points | difference | smallest found, points |",
        "| --- | ---: | --- | ---: |",
        *rows,
        "",
    ]


def _seen(own: Found) -> list[str]:
    errors = [accuracy_error(r) for o in own.results.outcomes for r in o.domains.values()]
    rows = []
    for other in ("mopd", "mixed"):
        if (OVERALL, "copd", other) not in own.summary.comparisons:
            continue
        seeds = own.summary.comparisons[OVERALL, "copd", other].seeds
        least = DASH
        if len(seeds) > 1:
            variances = paired_variances(own.results, "copd", other)[OVERALL]
            least = f"{100 * minimal_difference(variances, num_seeds=len(seeds)):.1f}"
        rows.append(f"| {own.name} | {100 * max(errors):.2f} | copd - {other} | {least} |")
    return rows


def _study(own: Found, figures: Mapping[str, str]) -> list[str]:
    """Tables and figures of one study."""
    blocks = [f"## {own.name}: {own.results.title}\n", *_figure(figures, own.name)]
    if own.name == "divergence":
        pairs = measures.mean_cosines(own)
        blocks += [f"- {p}: mean cosine {measures.written(e)}" for p, e in pairs.items()] + [""]
    if own.name == "pilot":
        blocks += measures.pilot_remarks(own)
    caption, table, *more, notes = to_markdown(own.summary).split("\n\n")  # none in a table
    folded = [FOLDED, *more, "</details>"]
    return [*blocks, "\n\n".join([caption, table, *folded, notes])]


def _how(found: Mapping[str, Found]) -> list[str]:
    lines = ["## Commands and versions\n", "```"]
    for name, own in found.items():
        seeds = own.results.settings["study"]["seeds"]
        lines.append(
            f"copd compare paper/studies/{name}.toml    # seeds {', '.join(map(str, seeds))}"
        )
    lines += ["python -m paper", "```", ""]
    for name, own in found.items():
        settings = own.results.settings
        versions = ", ".join(f"{k} {v}" for k, v in settings["versions"].items())
        lines.append(f"- {name}: {versions}; {settings['machine']}; {settings['collected']}")
    return [*lines, ""]


def _figure(figures: Mapping[str, str], name: str) -> list[str]:
    return [f"![{name}]({figures[name]})\n"] if name in figures else []


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<-", "\\<-")
