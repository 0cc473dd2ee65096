"""What `copd diagnose` does, without the command line: measure, then print and write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from copd.config import Config
from copd.lab.diagnose.measure import run_diagnosis, settled
from copd.lab.diagnose.page import page
from copd.lab.diagnose.tables import to_console, to_json
from copd.storage import write_atomically
from copd.types import Split


def diagnose(
    student: str,
    teacher: str,
    config: Config,
    *,
    domains: Sequence[str],
    split: Split,
    num_problems: int | None,
    num_samples: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Prints the diagnosis; with `out` also writes `diagnosis.json` and `diagnosis.html` there."""
    say = Console(stderr=True).print
    if out is not None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out must be a folder: got the file {out}. Name another.")
        out.mkdir(parents=True, exist_ok=True)
    config = settled(
        config, domains=domains, split=split, count=num_problems, num_samples=num_samples, say=say
    )
    diagnosis = run_diagnosis(student, teacher, config, split=split, say=say)
    found = json.dumps(to_json(diagnosis), indent=2, allow_nan=False)
    if as_json:
        print(found)
    else:
        Console().print(to_console(diagnosis))
    if out is not None:
        write_atomically(out / "diagnosis.json", found + "\n")
        write_atomically(out / "diagnosis.html", page(diagnosis))
        say(f"written: {out / 'diagnosis.json'}, {out / 'diagnosis.html'}")
