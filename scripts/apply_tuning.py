"""Takes learning rate and beta of every method from the tuning studies into the study files.

`python -m scripts.apply_tuning` reads `results.json` of each finished `tuning_WORLD`, takes of a
method's settings the one with the best overall accuracy, writes it into the lines of
configs/studies/*.toml that are marked `# tuned: WORLD/METHOD`, and all settings that were tried
into docs/tuning.md. It runs nothing and knows no statistics.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from copd.config.study import Study
from copd.lab.study import StudyResults, load_results, summarize
from copd.lab.study.moments import ORACLE
from copd.lab.study.results import OVERALL
from copd.monitor.results import Estimate
from copd.storage import write_atomically

WORLDS = ("agree", "conflict", "scarce")
_SETTING = re.compile(r"(?P<method>.+?)_\d+e\d+(_.+)?")
"""`copd_2e4_beta2` is a setting of `copd`."""
_MARK = re.compile(r"# tuned: (?P<world>\w+)/(?P<method>\w+)\s*$")
_RATE = re.compile(r"(?<=learning_rate = )[0-9.e+-]+")
_BETA = re.compile(r"(?<=beta = )(?:\{[^}]*\}|[0-9.]+)")
_ABOVE_ZERO = re.compile(r"(?<== )[0-9.]*[1-9][0-9.]*")

HEAD = """# Tuning

Written by `python -m scripts.apply_tuning`. In each world every method's learning rate, and the
beta of copd, were tuned on validation problems and one seed that no result uses, before any result.
The rule: of a method's settings the one with the best overall accuracy is taken, of experts the one
whose experts are best on their own domains (the table shows that mean). Where the lowest or the
highest rate wins, the next one beyond it is tried. `opd` takes the setting of `mopd`, other
topologies and remedies that of `copd`, two branches those of the world `conflict`. Intervals are
over problems. The rate 5e-5 and the rules for experts and edges were added after the first nine
runs in the world `conflict` had been seen, before any in the others.
"""


@dataclass(frozen=True)
class Setting:
    """One setting of a method, and how it did."""

    method: str
    learning_rate: float
    beta: float | None
    accuracy: Estimate


def tried(results: StudyResults) -> list[Setting]:
    """All settings of a tuning study, method by method; refuses one that is not finished."""
    if results.missing:
        raise ValueError(
            f"{results.title!r} must be finished, since the rule chooses among all settings: got "
            f"{', '.join(results.missing)} missing. Let copd compare end it."
        )
    study = Study.model_validate(results.settings["study"])
    overall = summarize(results).cells
    found = []
    for outcome in results.outcomes:
        match = _SETTING.fullmatch(outcome.method)
        if match is None or outcome.column != outcome.method:
            continue
        settings = study.settings(outcome.method)
        beta = settings["recipe"].get("beta")
        rate = settings["optimizer"]["learning_rate"]
        routed = _on_own_domains(results, outcome.method)
        accuracy = routed or overall[OVERALL, outcome.column]
        found.append(Setting(match["method"], rate, beta, accuracy))
    order = list(dict.fromkeys(setting.method for setting in found))
    return sorted(found, key=lambda setting: order.index(setting.method))


def _on_own_domains(results: StudyResults, method: str) -> Estimate | None:
    """The mean of every branch on its own domain; None where branches are not measured."""
    columns = {domain: f"{method}: branch {domain}" for domain in results.problems}
    if not set(columns.values()) <= set(results.columns):
        return None
    return summarize(replace(results, experts=columns)).cells[OVERALL, ORACLE]


def at_the_edge(settings: Sequence[Setting]) -> list[str]:
    """Methods whose best rate is the lowest or the highest tried: there it may not be the best."""
    edges = []
    for method, best in chosen(settings).items():
        rates = {setting.learning_rate for setting in settings if setting.method == method}
        if best.learning_rate in (min(rates), max(rates)):
            edges.append(method)
    return edges


def chosen(settings: Iterable[Setting]) -> dict[str, Setting]:
    """The best overall accuracy of each method; of equal ones the first."""
    best: dict[str, Setting] = {}
    for setting in settings:
        before = best.get(setting.method)
        if before is None or setting.accuracy.mean > before.accuracy.mean:
            best[setting.method] = setting
    return best


def apply(text: str, found: Mapping[str, Mapping[str, Setting]]) -> str:
    """A study file with its marked numbers replaced, for the worlds in `found`."""
    return "".join(_applied(line, found) for line in text.splitlines(keepends=True))


def _applied(line: str, found: Mapping[str, Mapping[str, Setting]]) -> str:
    mark = _MARK.search(line)
    if mark is None or mark["world"] not in found:
        return line
    own = found[mark["world"]]
    if mark["method"] not in own:
        raise ValueError(
            f"a study file asks for the tuned {mark['method']!r} of {mark['world']!r}: got only "
            f"{', '.join(own)}. Correct the mark, or tune that method."
        )
    setting = own[mark["method"]]
    line = _RATE.sub(_number(setting.learning_rate), line)
    if setting.beta is None:
        return line
    beta = f"{setting.beta:.1f}"
    return _BETA.sub(lambda m: _ABOVE_ZERO.sub(beta, m[0]) if "{" in m[0] else beta, line)


def table(world: str, settings: Sequence[Setting]) -> str:
    """All settings of a world in Markdown, the chosen ones bold."""
    best = chosen(settings)
    lines = [f"\n## World {world}\n", "| method | learning rate | beta | overall, % |"]
    lines.append("| --- | ---: | ---: | ---: |")
    for setting in settings:
        bold = "**" if setting is best[setting.method] else ""
        beta = "" if setting.beta is None else f"{setting.beta:g}"
        rate = _number(setting.learning_rate)
        lines.append(f"| {setting.method} | {rate} | {beta} | {bold}{setting.accuracy}{bold} |")
    return "\n".join(lines) + "\n"


def _number(rate: float) -> str:
    """As people write it: 2e-4."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the files; worlds whose tuning is missing are named and left as they are."""
    parser = argparse.ArgumentParser(prog="python -m scripts.apply_tuning", description=__doc__)
    parser.add_argument("--studies", type=Path, default=Path("runs/studies"), help="where they ran")
    parser.add_argument("--root", type=Path, default=Path(), help="the repository")
    arguments = parser.parse_args(argv)
    worlds: dict[str, list[Setting]] = {}
    for world in WORLDS:
        path = arguments.studies / f"tuning_{world}" / "results.json"
        if path.exists():
            worlds[world] = tried(load_results(path))
        else:
            print(f"not tuned yet: {world} ({path} is missing)", file=sys.stderr)
    if not worlds:
        return 1
    for world, settings in worlds.items():
        if edges := at_the_edge(settings):
            print(f"{world}: the best rate is at the edge of {', '.join(edges)}", file=sys.stderr)
    found = {world: chosen(settings) for world, settings in worlds.items()}
    for path in sorted((arguments.root / "configs" / "studies").glob("*.toml")):
        before = path.read_text(encoding="utf-8")
        if (after := apply(before, found)) != before:
            write_atomically(path, after)
            print(f"wrote {path}")
    page = HEAD + "".join(table(world, settings) for world, settings in worlds.items())
    write_atomically(arguments.root / "docs" / "tuning.md", page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
