"""The text of paper/results.md: claims, verdicts and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from copd.lab.study import to_markdown
from copd.lab.study.layout import DASH
from copd.lab.study.moments import ORACLE
from copd.lab.study.power import accuracy_error, minimal_difference, paired_variances
from copd.lab.study.results import OVERALL
from paper import claims, measures
from paper.claims import Claim, Part
from paper.load import HALF, LONG, MAIN, NAMES, REMEDIES, WORLDS, Found

Studies = Mapping[str, Found]
Figures = Mapping[str, str]

HEAD = """# Results

Written by `python -m paper` from the measurements of our studies, every problem of every model,
which are in results/ beside this page; nothing below is typed by hand. The studies were declared
before anyone looked at their results (studies/, docs/studies.md; one look at an early tuning run is
in docs/appendix/log.md). Added after first results had been seen: three_branches_long, and in it
copd at half its rate, before any result of its own; the branches of copd as columns of the worlds;
MOPD among the claims of the ablations; and the pilot's remarks about room. Learning rates were
tuned separately (tuning.md); docs/statistics.md says how intervals are computed. All differences
are in points of accuracy, paired over seeds and problems, with 95 % intervals and the probability
of being ahead, unless stated otherwise.
"""

RULE = """A difference **holds** where its interval is on the claimed side of zero, **fails** where
it is on the other side, and is **open** otherwise. "At or above" and "near" hold down to one point
below. Intervals are not adjusted for their number.
"""

SHORT = ("base", "experts: average", "mopd", "copd", "copd: validation", "mixed", ORACLE)
"""The columns of the summary; the chosen remedy comes before mixed RLVR."""

FOLDED = "<details><summary>Differences, probabilities, headroom, budgets</summary>"

LIMITS = """What limits it: a branch against the expert with as many RLVR steps shows what coupling
costs its domain, the merged model against the branch what the merge costs.
"""

POWER = """The error of one model's accuracy is over problems, the largest of all models and
domains. The difference is the smallest true one that a two-sided 5 % test finds in 80 of 100 such
studies (docs/statistics.md).
"""


def page(found: Studies, figures: Figures) -> str:
    """Return the whole page; `figures` are paths by name, relative to it."""
    blocks = [HEAD, _state(found), *_summary(found), *_claims(found)]
    blocks += [*_worlds(found, figures), *_power(found)]
    blocks += [block for own in found.values() for block in _study(own, figures)]
    return "\n".join([*blocks, *_commands(found)])


def all_claims(found: Studies) -> list[Claim]:
    """Return every claim in every study that can judge it."""
    listed: list[Claim] = []
    for name, own in found.items():
        summary, experts = own.summary, own.results.experts
        if name in MAIN:
            listed += claims.paper_claims(name, summary, experts)
            listed += claims.copd_claims(name, summary, experts, HALF)
        elif name == "ablations":
            listed += claims.ablation_claims(name, summary)
        elif name == "dynamics":
            listed += measures.dynamics_claims(own)
        elif name == "pilot":
            listed += measures.pilot_claims(own)
        elif name == "ratio":
            listed += claims.ratio_claims(name, summary)
    return listed


def _state(found: Studies) -> str:
    lines = [f"- no results yet: {name}" for name in NAMES if name not in found]
    for name, own in found.items():
        if own.results.missing:
            lines.append(f"- not finished: {name} lacks {', '.join(own.results.missing)}")
    if not lines:
        return "All studies are finished.\n"
    return "\n".join(["What is not there yet:\n", *lines, ""])


def _summary(found: Studies) -> list[str]:
    """Return the main studies in a line each."""
    worlds = {study: world for world, study in WORLDS.items()}
    rows = []
    for name in (name for name in MAIN if name in found):
        cells = found[name].summary.cells
        short = [str(cells.get((OVERALL, column), DASH)) for column in SHORT]
        remedy = _chosen(found, worlds.get(name))
        confirmed = cells.get((OVERALL, remedy)) if remedy else None
        short.insert(-2, f"{confirmed} ({remedy})" if confirmed else DASH)
        rows.append([name, *short])
    if not rows:
        return []
    caption = "Overall accuracy in %, means over seeds with 95 % intervals:\n"
    header = ["study", *SHORT[:-2], "chosen remedy", *SHORT[-2:]]
    return ["## In short\n", caption, *_table(header, rows, right=range(1, len(header)))]


def _claims(found: Studies) -> list[str]:
    listed = sorted(all_claims(found), key=lambda claim: claim.text)
    if not listed:
        return []
    rows = []
    for claim in listed:
        parts = [f"{_escaped(p.text)}: {p.value}, {p.verdict}" for p in claim.parts]
        rows.append([claim.text, claim.study, f"**{claim.verdict}**", "<br>".join(parts)])
    table = _table(["claim", "study", "verdict", "measured"], rows)
    return ["## The paper's claims\n", RULE, *table]


def _worlds(found: Studies, figures: Figures) -> list[str]:
    if not any(name in found for name in WORLDS.values()):
        return []
    blocks = ["## When does co-evolution pay?\n", *_figure(figures, "worlds")]
    for world, name in WORLDS.items():
        if name in found:
            blocks += [f"### World {world}\n", *_answers(found[name]), *_remedies(found, world)]
    if LONG in found:
        blocks += ["### World conflict, three times the steps\n", *_answers(found[LONG])]
    return blocks


def _answers(own: Found) -> list[str]:
    """Compare copd, and its other rate where a study has it, and say where it loses to experts."""
    summary, experts = own.summary, own.results.experts
    columns = ("copd", HALF)
    parts = [p for column in columns for p in claims.world_answers(summary, experts, column)]
    parts += claims.overall(summary, ORACLE, ["base"])
    limits = claims.world_limits(summary, experts)
    return [*_parts(parts), *([LIMITS, *_parts(limits)] if limits else [])]


def _chosen(found: Studies, world: str | None) -> str | None:
    """Return the remedy that the rule chooses in a world, once all are measured."""
    own = found.get(REMEDIES.get(world or "", ""))
    return None if own is None or own.results.missing else claims.chosen_remedy(own.summary)


def _remedies(found: Studies, world: str) -> list[str]:
    """Return the chosen remedy of a world, and its confirmation by the world's study."""
    chosen = _chosen(found, world)
    if chosen is None:
        return []
    if chosen == "copd":
        return ["Of the remedies none was ahead of copd on the validation problems.\n"]
    confirmed = claims.confirmation(found[WORLDS[world]].summary, chosen)
    if not confirmed:
        return [f"Chosen on validation problems: {chosen}. It is not confirmed yet.\n"]
    caption = f"Chosen on validation problems: {chosen}. On fresh seeds and test problems:\n"
    return [caption, *_parts(confirmed)]


def _parts(parts: Sequence[Part]) -> list[str]:
    words = {"holds": "ahead", "fails": "behind"}
    rows = [[_escaped(p.text), p.value, words.get(p.verdict, p.verdict)] for p in parts]
    return _table(["difference", "points", ""], rows)


def _power(found: Studies) -> list[str]:
    rows = [row for name in MAIN if name in found for row in _power_rows(found[name])]
    if not rows:
        return []
    header = ["study", "error of an accuracy, points", "difference", "smallest found, points"]
    return ["## Power\n", POWER, *_table(header, rows, right=(1, 3))]


def _power_rows(own: Found) -> list[list[str]]:
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
        rows.append([own.name, f"{100 * max(errors):.2f}", f"copd - {other}", least])
    return rows


def _study(own: Found, figures: Figures) -> list[str]:
    """Return tables and figures of one study."""
    blocks = [f"## {own.name}: {own.results.title}\n", *_figure(figures, own.name)]
    if own.name == "divergence":
        pairs = measures.mean_cosines(own)
        blocks += [f"- {p}: mean cosine {measures.written(e)}" for p, e in pairs.items()] + [""]
    if own.name == "pilot":
        blocks += measures.pilot_remarks(own)
    caption, table, *more, notes = to_markdown(own.summary).split("\n\n")  # none in a table
    return [*blocks, "\n\n".join([caption, table, FOLDED, *more, "</details>", notes])]


def _commands(found: Studies) -> list[str]:
    commands, versions = [], []
    for name, own in found.items():
        settings = own.results.settings
        seeds = ", ".join(map(str, settings["study"]["seeds"]))
        commands.append(f"copd compare paper/studies/{name}.toml    # seeds {seeds}")
        packages = ", ".join(f"{k} {v}" for k, v in settings["versions"].items())
        versions.append(f"- {name}: {packages}; {settings['machine']}; {settings['collected']}")
    title = "## Commands and versions\n"
    return [title, "```", *commands, "python -m paper", "```", "", *versions, ""]


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[int] = ()
) -> list[str]:
    """Return the lines of a table; the columns of `right` are aligned there."""
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    lines = [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]
    return [line.replace("|  |", "| |") for line in lines] + [""]


def _figure(figures: Figures, name: str) -> list[str]:
    return [f"![{name}]({figures[name]})\n"] if name in figures else []


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<-", "\\<-")
