"""The parts of the page that need no script: what a run is, its results, its cost. Pure HTML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import numpy as np

from copd.lab.report.reading import RunFiles
from copd.monitor.results import DomainResult, Estimate, Results, gain, mean_interval, overall
from copd.planning.cost import describe, plan_cost
from copd.recipes import build_plan, to_dict
from copd.run.cost import COUNTS


def run_section(run: RunFiles, *, is_open: bool, is_printed: bool) -> str:
    """All that is known of a run, foldable."""
    body = "".join(
        [
            _notes(run),
            _facts(run),
            run.attempt("The table of results", lambda: _results(run), ""),
            run.attempt("The table of costs", lambda: _costs(run), ""),
            _fold("Plan", run.attempt("The plan", lambda: _plan_text(run), ""), "plan"),
            _fold("Configuration", _plain(run.settings) if run.settings else "", "settings"),
        ]
    )
    head = f'<span class="name">{escape(run.name)}</span> <span class="state">{state(run)}</span>'
    marks = (" data-print" if is_printed else "") + (" open" if is_open else "")
    return f'<details class="run"{marks}><summary>{head}</summary>{body}</details>'


def state(run: RunFiles) -> str:
    """Where the run is, in words."""
    if not run.total_steps:
        return "no plan to be read"
    if run.is_finished:
        return f"finished, {run.total_steps} steps"
    if run.done_steps == run.total_steps:
        return f"all {run.total_steps} steps done, not measured"
    return f"not finished, step {run.done_steps} of {run.total_steps}"


def overview(runs: Sequence[RunFiles]) -> str:
    """Several runs, a line each."""
    head = ("run", "recipe", "seed", "state", "final model, mean accuracy", "last written")
    rows = [
        [
            r.name,
            recipe(r),
            str(r.settings.get("seed", "")),
            state(r),
            r.attempt("The mean accuracy", lambda r=r: _final(r), ""),
            written(r),
        ]
        for r in runs
    ]
    return _table(head, rows, "overview", "Runs on this page")


def _final(run: RunFiles) -> str:
    """The final model and its mean accuracy in percent, once it is measured."""
    name = run.final
    own = run.results.get(name) if name else None
    return f"{name} {overall(own)}" if own else ""


def recipe(run: RunFiles) -> str:
    """The method in one or two words."""
    settings = run.settings.get("recipe")
    return str(settings.get("type", "")) if isinstance(settings, dict) else ""


def written(run: RunFiles) -> str:
    """When a file of the run was last written."""
    files = [f for f in run.path.iterdir() if f.suffix in (".json", ".jsonl")]
    return moment(max((f.stat().st_mtime for f in files), default=0.0))


def moment(seconds: float) -> str:
    """A time in words, the same everywhere."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%-d %b %Y, %H:%M UTC")


def _notes(run: RunFiles) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(run.notes))
    return f'<ul class="notes" role="note">{items}</ul>' if items else ""


def _facts(run: RunFiles) -> str:
    model = run.settings.get("model")
    seconds = sum(line["seconds"] for line in run.timings if isinstance(line["seconds"], float))
    settings = run.path / "config.json"
    facts = {
        "Recipe": recipe(run),
        "Model": str(model.get("path", "")) if isinstance(model, dict) else "",
        "Seed": str(run.settings.get("seed", "")),
        "Branches": ", ".join(run.branches),
        "Domains": ", ".join(run.domains),
        "Steps": f"{run.done_steps} of {run.total_steps}",
        "Time in steps": _duration(seconds) if seconds else "",
        "Started or resumed": moment(settings.stat().st_mtime) if settings.exists() else "",
        "Last written": written(run),
    }
    items = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items() if v)
    return f'<dl class="facts">{items}</dl>'


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _results(run: RunFiles) -> str:
    """Rows: suites, domains, their mean; columns: models; last what the final model gained."""
    if not run.results:
        return '<p class="remark">Nothing has been measured on held-out problems yet.</p>'
    models = [m for m in run.models if m in run.results] or list(run.results)
    results = {m: run.results[m] for m in models}
    final = run.final if run.final in results and "base" in results else None
    head = ["accuracy, %", *models, *([f"{final} \u2212 base"] if final else [])]
    rows = [
        f'<tr class="{kind}"><th scope="row">{escape(label)}</th>'
        + "".join(_accuracy(mean_interval(values[m])) for m in models)
        + (_points(_difference(values[final], values["base"])) if final else "")
        + "</tr>"
        for kind, label, values in _result_rows(results)
    ]
    last = "".join(_accuracy(overall(results[m])) for m in models)
    last += _points(gain(results[final], results["base"])["mean"]) if final else ""
    rows.append(f'<tr class="total"><th scope="row">mean</th>{last}</tr>')
    caption = (
        "Held-out accuracy with 95 % intervals over problems; differences in points, paired over "
        "the same problems."
    )
    if not run.is_finished:
        caption += " The trained models are measured when the run ends."
    columns = "".join(
        f'<th scope="col" data-model="{escape(name)}">{escape(name)}</th>' for name in head
    )
    return (
        f'<div class="wide"><table class="results"><caption><span>{caption}</span></caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _result_rows(
    results: Mapping[str, Results],
) -> Iterable[tuple[str, str, dict[str, tuple[float, ...]]]]:
    first: Mapping[str, DomainResult] = next(iter(results.values()))
    for domain, result in first.items():
        for suite in dict.fromkeys(result.suites):
            own = {m: r[domain].of_suite(suite) for m, r in results.items()}
            yield "suite", f"{domain}/{suite}", own
        yield "domain", domain, {m: r[domain].accuracy for m, r in results.items()}


def _difference(model: Sequence[float], base: Sequence[float]) -> Estimate:
    return mean_interval(np.subtract(model, base).tolist())


def _accuracy(e: Estimate) -> str:
    mean, _, half = str(e).partition(" ")
    interval = f' <small class="half">{half}</small>' if half else ""
    return f'<td style="--part:{e.mean:.3f}"><b>{mean}</b>{interval}</td>'


def _points(e: Estimate) -> str:
    mean, low, high = (f"{100 * x:+.1f}".replace("-", "\u2212") for x in (e.mean, e.low, e.high))
    if not np.isfinite(e.low):
        return f'<td class="gain unsure"><b>{mean}</b></td>'
    sure = "sure" if e.low > 0 or e.high < 0 else "unsure"
    return f'<td class="gain {sure}"><b>{mean}</b> <small>[{low}, {high}]</small></td>'


def _costs(run: RunFiles) -> str:
    if not run.metrics or "cost" not in run.metrics[-1]:
        return ""
    cost: dict[str, dict[str, int]] = run.metrics[-1]["cost"]
    names = [name.replace("_", " ") for name in COUNTS]
    rows = [[branch, *(f"{own[c]:,}" for c in COUNTS)] for branch, own in cost.items()]
    total = [f"{sum(own[c] for own in cost.values()):,}" for c in COUNTS]
    caption = "Cost so far" if not run.is_finished else "Cost"
    about = f"{caption}. Tokens are those of completions; scored is what a branch did as a teacher."
    return _table(("branch", *names), [*rows, ["total", *total]], "costs", about)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str, caption: str) -> str:
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="wide"><table class="{kind}"><caption><span>{escape(caption)}</span></caption>'
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _plan_text(run: RunFiles) -> str:
    """As `copd plan` prints it, where the configuration alone makes the plan of this run."""
    if run.config is not None and to_dict(plan := build_plan(run.config)) == run.plan:
        return describe(plan, plan_cost(plan, run.config.rollout))
    return _plain(run.plan) if run.plan else ""


def _plain(values: Mapping[str, object]) -> str:
    return json.dumps(dict(values), indent=2, ensure_ascii=False)


def folded(title: str, content: str, *, is_printed: bool = False) -> str:
    """HTML behind its title; unfolded by a click, and on paper where it should be."""
    mark = " data-print" if is_printed else ""
    return f'<details class="fold"{mark}><summary>{title}</summary>{content}</details>'


def _fold(title: str, text: str, kind: str) -> str:
    content = f'<pre class="{kind}">{escape(text)}</pre>'
    return folded(title, content, is_printed=True) if text else ""


def study_section(path: Path) -> str:
    """The comparison of a study: its tables and what it was."""
    from copd.lab.study.results import load_results
    from copd.lab.study.statistics import summarize
    from copd.lab.study.tables import to_html

    results = load_results(path / "results.json")
    settings = _fold("The study", _plain(results.settings), "settings")
    return (
        f'<section class="study"><h2>{escape(results.title)}</h2>'
        f'<div class="wide">{to_html(summarize(results))}</div>{settings}</section>'
    )
