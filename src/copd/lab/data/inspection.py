"""What data files hold and how a model reads them, as plain values and as text."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from copd.domains.files import FilesDomain, remarks
from copd.domains.files.index import SPLITS
from copd.policy.rendering.render import Renderer, load_renderer
from copd.policy.tiny import resolve
from copd.types import ContentPart, Image, Problem, Split, Text

InspectionRow = dict[str, Any]

NUM_LISTED = 20
"""Bad lines shown on a terminal; `--json` lists all."""

_WIDTH = 600
"""Characters shown of a text."""


def inspect(domain: FilesDomain, model: str | None, num_shown: int) -> InspectionRow:
    """Return the report of `copd data` as plain values."""
    renderer = None if model is None else load_renderer(resolve(model))
    index = domain.index
    tables = [source.table for source in domain.sources]
    usable: list[Split] = [split for split in SPLITS if domain.num_problems(split)]
    first = (usable or SPLITS)[0]
    shown = range(min(num_shown, domain.num_problems(first)))
    return {
        "files": [{"name": table.name, "problems": len(table)} for table in tables],
        "problems": index.num_rows,
        "splits": {split: domain.num_problems(split) for split in SPLITS},
        "modality": domain.modality,
        "suites": list(domain.suites),
        "remarks": list(remarks(index)),
        "model": model,
        "shown": [_shown(domain.problem(first, i), domain, renderer) for i in shown],
        "bad": [{"file": b.table, "line": b.number, "reason": b.reason} for b in index.bad],
    }


def _shown(problem: Problem, domain: FilesDomain, renderer: Renderer | None) -> InspectionRow:
    reference = domain.verifier.format_reference(problem.answer)
    row: InspectionRow = {
        "split": problem.id.split,
        "index": problem.id.index,
        "suite": problem.suite,
        "answer": problem.answer,
        "answer_as_read": domain.extract_answer(problem, reference),
        "messages": [
            {"role": m.role, "content": [_described(part) for part in m.content]}
            for m in problem.messages
        ],
    }
    return row if renderer is None else row | {"prompt": _rendered(problem, renderer)}


def _described(part: ContentPart) -> str:
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Image):
        height, width, _ = part.pixels.shape
        return f"[picture, {width} x {height} pixels]"
    count, height, width, _ = part.frames.shape
    seconds = count / part.fps
    return f"[clip, {count} frames of {width} x {height} pixels over {seconds:.1f} seconds]"


def _rendered(problem: Problem, renderer: Renderer) -> InspectionRow:
    """Return the prompt as the model reads it, with repeated media tokens as a count."""
    prompt = renderer.render(problem.messages)
    text = renderer.tokenizer.decode(prompt.input_ids.tolist())
    assert isinstance(text, str), "one prompt is one text"
    kinds = prompt.media.get("mm_token_type_ids")
    return {
        "tokens": len(prompt.input_ids),
        "visual_tokens": 0 if kinds is None else int((kinds > 0).sum()),
        "text": re.sub(
            r"(<\|\w+\|>)\1+", lambda run: f"{run[1]} x {len(run[0]) // len(run[1])} ", text
        ),
    }


def describe_data(report: InspectionRow) -> str:
    """Return a report from `inspect` as text for a terminal."""
    return "\n".join(_lines(report))


def _lines(report: InspectionRow) -> Iterator[str]:
    bad = report["bad"]
    for file in report["files"]:
        yield f"{file['name']}: {file['problems']} problems"
    yield "splits: " + ", ".join(f"{count} {split}" for split, count in report["splits"].items())
    yield f"modality: {report['modality']}; suites: {', '.join(report['suites'])}"
    yield from report["remarks"]
    for problem in report["shown"]:
        yield ""
        yield from _problem_lines(problem, report["model"])
    if bad:
        yield f"\nbad problems: {len(bad)}"
        yield from (f"{row['file']}:{row['line']}: {row['reason']}" for row in bad[:NUM_LISTED])
    if len(bad) > NUM_LISTED:
        yield f"... and {len(bad) - NUM_LISTED} more; --json lists all"
        reasons = Counter(re.sub(r"'[^']*'|[0-9]+", "...", row["reason"]) for row in bad)
        yield "most frequent: " + "; ".join(f"{n} x {r}" for r, n in reasons.most_common(3))


def _problem_lines(problem: Mapping[str, Any], model: str | None) -> Iterator[str]:
    yield f"{problem['split']} problem {problem['index']}, suite {problem['suite']}:"
    for message in problem["messages"]:
        yield f"  {message['role']}: {_cut(''.join(message['content']))}"
    yield f"  answer: {_cut(problem['answer'])}, read as {_cut(problem['answer_as_read'])}"
    if prompt := problem.get("prompt"):
        tokens, visual = prompt["tokens"], prompt["visual_tokens"]
        yield f"  {model} reads {tokens} tokens, {visual} of them visual:"
        yield from (f"    {line}" for line in _cut(prompt["text"]).splitlines())


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[:_WIDTH]} ... ({len(text)} characters)"
