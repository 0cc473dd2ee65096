"""The parts of the page that need no script: facts, results, costs and plans as HTML."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path

import numpy as np

from copd.lab.report.reading import RunFiles
from copd.lab.study.results import load_results
from copd.lab.study.statistics import summarize
from copd.lab.study.tables import to_html
from copd.monitor.results import (
    Estimate,
    gain,
    mean_interval,
    overall,
    paired_difference,
    result_rows,
)
from copd.planning.cost import describe, plan_cost
from copd.recipes import build_plan, to_dict
from copd.run.cost import COUNTS


def run_section(run: RunFiles, *, is_open: bool, is_printed: bool) -> str:
    """Return everything about a run behind its name, unfolded if `is_open`."""
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
    """Return how far the run is, in words."""
    if not run.total_steps:
        return "no readable plan"
    if run.is_finished:
        return f"finished, {run.total_steps} steps"
    if run.done_steps == run.total_steps:
        return f"all {run.total_steps} steps done, not evaluated"
    return f"not finished, step {run.done_steps} of {run.total_steps}"


def overview(runs: Sequence[RunFiles]) -> str:
    """Return a table of several runs, a row each."""
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
    return table(head, rows, kind="overview", caption="Runs on this page")


def _final(run: RunFiles) -> str:
    """Return the final model and its mean accuracy in percent, once it is evaluated."""
    own = run.results.get(run.final) if run.final else None
    return f"{run.final} {overall(own)}" if own else ""


def recipe(run: RunFiles) -> str:
    """Return the type of the run's recipe."""
    settings = run.settings.get("recipe")
    return str(settings.get("type", "")) if isinstance(settings, dict) else ""


def written(run: RunFiles) -> str:
    """Return when a file of the run was last written."""
    files = [f for f in run.path.iterdir() if f.suffix in (".json", ".jsonl")]
    return moment(max((f.stat().st_mtime for f in files), default=0.0))


def moment(seconds: float) -> str:
    """Format seconds since the epoch as date and time."""
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
    """Return accuracies by suite, domain and model, and what the final model gained."""
    if not run.results:
        return '<p class="remark">Nothing has been evaluated on held-out problems yet.</p>'
    models = [m for m in run.models if m in run.results] or list(run.results)
    results = {m: run.results[m] for m in models}
    final = run.final if run.final in results and "base" in results else None
    head = ["accuracy, %", *models, *([f"{final} \u2212 base"] if final else [])]
    rows = []
    for label, is_domain, values in result_rows(results):
        cells = [_accuracy(mean_interval(own)) for own in values.values()]
        cells += [_points(paired_difference(values[final], values["base"]))] if final else []
        rows.append(_row("domain" if is_domain else "suite", label, cells))
    cells = [_accuracy(overall(own)) for own in results.values()]
    cells += [_points(gain(results[final], results["base"])["mean"])] if final else []
    rows.append(_row("total", "mean", cells))
    caption = (
        "Held-out accuracy with 95 % intervals over problems; differences in points, paired over "
        "the same problems."
    )
    if not run.is_finished:
        caption += " The trained models are evaluated when the run ends."
    columns = [f'<th scope="col" data-model="{escape(n)}">{escape(n)}</th>' for n in head]
    return _wide_table("results", caption, columns, rows)


def _row(kind: str, label: str, cells: Sequence[str]) -> str:
    return f'<tr class="{kind}"><th scope="row">{escape(label)}</th>{"".join(cells)}</tr>'


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
    caption = (
        f"{'Cost' if run.is_finished else 'Cost so far'}. Tokens are those of completions; scored "
        "tokens are those a branch scored as a teacher."
    )
    return table(("branch", *names), [*rows, ["total", *total]], kind="costs", caption=caption)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, kind: str = "", caption: str = ""
) -> str:
    """Return a table whose first column labels the rows."""
    columns = [f'<th scope="col">{escape(name)}</th>' for name in head]
    body = [_row("", first, [f"<td>{escape(c)}</td>" for c in rest]) for first, *rest in rows]
    return _wide_table(kind, caption, columns, body)


def _wide_table(kind: str, caption: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    about = f"<caption><span>{escape(caption)}</span></caption>" if caption else ""
    return (
        f'<div class="wide"><table class="{kind}">{about}<thead><tr>{"".join(columns)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _plan_text(run: RunFiles) -> str:
    """Describe the plan like `copd plan`, if the configuration alone builds this plan."""
    if run.config is not None and to_dict(plan := build_plan(run.config)) == run.plan:
        return describe(plan, plan_cost(plan, run.config))
    return _plain(run.plan) if run.plan else ""


def _plain(values: Mapping[str, object]) -> str:
    return json.dumps(dict(values), indent=2, ensure_ascii=False)


def folded(title: str, content: str, *, is_printed: bool = False) -> str:
    """Fold HTML behind its title; if `is_printed`, it is unfolded on paper."""
    mark = " data-print" if is_printed else ""
    return f'<details class="fold"{mark}><summary>{title}</summary>{content}</details>'


def _fold(title: str, text: str, kind: str) -> str:
    content = f'<pre class="{kind}">{escape(text)}</pre>'
    return folded(title, content, is_printed=True) if text else ""


def study_section(path: Path) -> str:
    """Return the tables and the settings of a study."""
    results = load_results(path / "results.json")
    settings = _fold("The study", _plain(results.settings), "settings")
    return (
        f'<section class="study"><h2>{escape(results.title)}</h2>'
        f'<div class="wide">{to_html(summarize(results))}</div>{settings}</section>'
    )
