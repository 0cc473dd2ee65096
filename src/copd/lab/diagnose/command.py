"""`copd diagnose` without the command line: measure, print and write."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from copd.config import Config
from copd.lab.diagnose.measure import diagnosis_config, run_diagnosis
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
    """Compare a student with a teacher on the student's rollouts, and print a verdict.

    Args:
        student: Model folder, GGUF file, adapter, hub name or "tiny".
        teacher: Likewise; it must have the student's tokens.
        config: Domains, seed, token limit and probes.
        domains: Names of the domains to use; empty for all.
        split: Split of the problems.
        num_problems: Problems per domain; at most 100 if None.
        num_samples: Rollouts per problem.
        out: Folder for `diagnosis.json` and `diagnosis.html`.
        as_json: Print JSON instead of tables.

    Raises:
        ValueError: If the models or domains do not fit, or `out` is a file.
    """
    say = Console(stderr=True).print
    if out is not None:
        if out.exists() and not out.is_dir():
            raise ValueError(f"--out must be a folder: got the file {out}. Name another.")
        out.mkdir(parents=True, exist_ok=True)
    config = diagnosis_config(
        config, domains=domains, split=split, count=num_problems, num_samples=num_samples, say=say
    )
    diagnosis = run_diagnosis(student, teacher, config, split=split, say=say)
    text = json.dumps(to_json(diagnosis), indent=2, allow_nan=False)
    if as_json:
        print(text)
    else:
        Console().print(to_console(diagnosis))
    if out is not None:
        write_atomically(out / "diagnosis.json", text + "\n")
        write_atomically(out / "diagnosis.html", page(diagnosis))
        say(f"written: {out / 'diagnosis.json'}, {out / 'diagnosis.html'}")
