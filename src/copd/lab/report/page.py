"""The report of run and study directories as one HTML file that loads nothing from outside."""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from copd.lab.report.curves import measured, num_points, series
from copd.lab.report.fragments import folded, moment, overview, recipe, run_section, study_section
from copd.lab.report.matrices import matrices
from copd.lab.report.reading import DAMAGE, RunFiles, read_run
from copd.lab.report.rollouts import MAX_GROUPS, MAX_TOKENS, Gallery, add_rollouts
from copd.storage import write_atomically

SCRIPTS = ("page.js", "chart.js", "curves.js", "matrices.js", "rollouts.js")
MANY = 6
"""Number of runs above which their sections are folded."""
STUDY_FILES = ("study.json", "results.json")


def write_report(paths: Sequence[Path], out: Path | None = None) -> Path:
    """Write the report of runs and studies.

    Args:
        paths: Directories that `copd train` or `copd compare` made; the runs may be unfinished.
        out: File to write; by default `report.html` in the directory, or here for several.

    Returns:
        The path of the file.

    Raises:
        ValueError: If a path is neither a run nor a study, or the folder of `out` is missing.
    """
    paths = [*dict.fromkeys(path.resolve() for path in paths)]
    if out is None:
        out = paths[0] / "report.html" if len(paths) == 1 else Path("report.html")
    studies = [path for path in paths if _is_study(path)]
    runs = [run for path in paths for run in _runs(path, alone=len(paths) == 1)]
    if not out.parent.is_dir():
        raise ValueError(
            f"--out must be in a folder that exists: got {out}. Make the folder, or name another."
        )
    write_atomically(out, page(runs, studies))
    return out


def page(runs: Sequence[RunFiles], studies: Sequence[Path]) -> str:
    """Return the page as text."""
    data = _data(runs)  # first: what cannot be read becomes notes of the sections
    is_one, is_few = len(runs) == 1, len(runs) <= MANY
    sections = "".join(run_section(run, is_open=is_one, is_printed=is_few) for run in runs)
    names = [path.name for path in studies] or [run.name for run in runs]
    parts = {
        "title": escape(", ".join(names) if len(names) < 4 else f"{len(names)} runs"),
        "studies": "".join(map(_study, studies)),
        "overview": "" if is_one else overview(runs),
        "runs": sections if is_few else folded("The runs one by one", sections),
        "data": embedded(data),
        "script": "\n".join(map(asset, SCRIPTS)),
    }
    return framed("report", asset("page.html"), parts)


def framed(kind: str, body: str, parts: Mapping[str, str]) -> str:
    """Put the body into the frame of all pages, and every part where its name stands."""
    common = {"kind": kind, "body": body, "made": moment(time.time()), "style": asset("page.css")}
    text = asset("frame.html")
    for name, part in {**common, **parts}.items():
        text = text.replace(f"<!--{name}-->", part)
    return text


def asset(name: str, package: str = "copd.lab.report") -> str:
    """Return the text of a file that comes with a package."""
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def embedded(data: object) -> str:
    """Return JSON without `<`, so that no text in it ends the script or becomes markup."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def groups(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Group the runs that differ only in their seed, in the order they came."""
    found: dict[str, list[int]] = {}
    for number, run in enumerate(runs):
        own = {k: v for k, v in run.settings.items() if k not in ("seed", "output_dir")}
        key = json.dumps([run.method, own or number], sort_keys=True)
        found.setdefault(key, []).append(number)
    return [{"label": _label([runs[i] for i in m]), "runs": m} for m in found.values()]


def _label(runs: Sequence[RunFiles]) -> str:
    first = runs[0]
    if len(runs) == 1:
        return first.name
    seeds = ", ".join(str(run.settings.get("seed")) for run in runs)
    return f"{first.method or recipe(first)}, seeds {seeds}"


def _data(runs: Sequence[RunFiles]) -> dict[str, Any]:
    """Return the values that the scripts of the page read."""
    gallery, points = Gallery(), num_points(len(runs))
    together = groups(runs)
    shown = [group["runs"][0] for group in together] if len(runs) > 2 * MANY else range(len(runs))
    for number in shown:
        run, quota = runs[number], MAX_GROUPS // len(shown)
        run.attempt(
            "Rollouts", lambda r=run, n=number, q=quota: add_rollouts(gallery, r, n, quota=q), None
        )
    return {
        "runs": [_run(run, points) for run in runs],
        "points": points,
        "groups": together,
        "rollouts": {**gallery.to_json(), "max_tokens": MAX_TOKENS, "runs": len(shown)},
    }


def _run(run: RunFiles, points: int) -> dict[str, Any]:
    return {
        "name": run.name,
        "seed": run.settings.get("seed"),
        "branches": run.branches,
        "models": run.models,
        "domains": run.domains,
        "stages": [[stage["name"], stage["steps"]] for stage in run.plan.get("stages", [])],
        "total": run.total_steps,
        "series": run.attempt("Learning curves", lambda: series(run, points), []),
        "measured": run.attempt("Held-out accuracy over steps", lambda: measured(run), []),
        "matrices": run.attempt("Overlap and KL of pairs", lambda: matrices(run), None),
    }


def _is_study(path: Path) -> bool:
    return any((path / name).is_file() for name in STUDY_FILES)


def _runs(path: Path, *, alone: bool) -> Iterable[RunFiles]:
    """Read the run in a directory, or all runs of a study."""
    if _is_study(path):
        prefix = "" if alone else f"{path.name}/"
        for run in _in_order(path):
            method = f"{prefix}{run.parent.name}"
            yield read_run(run, name=f"{method}/{run.name}", method=method)
    elif (path / "config.json").is_file():
        yield read_run(path, name=path.name)
    else:
        raise ValueError(
            f"{path} is not a run: expected a config.json in it, or a study's results.json. "
            "Name a directory that `copd train` or `copd compare` made."
        )


def _in_order(study: Path) -> list[Path]:
    """Sort runs by method, in the study's order, and seed; methods it does not name come last."""
    try:
        methods = [*json.loads((study / "study.json").read_text(encoding="utf-8"))["methods"]]
    except (OSError, *DAMAGE):
        methods = []

    def place(run: Path) -> tuple[int, str, int, str]:
        method, name = run.parent.name, run.name
        known = methods.index(method) if method in methods else len(methods)
        return known, method, len(name), name  # seed_2 before seed_10

    return sorted((config.parent for config in study.glob("runs/*/*/config.json")), key=place)


def _study(path: Path) -> str:
    try:
        return study_section(path)
    except (OSError, *DAMAGE) as error:
        why = f"{path.name} has no comparison to show yet: {error}."
        return f'<section class="study"><p class="remark">{escape(why)}</p></section>'
