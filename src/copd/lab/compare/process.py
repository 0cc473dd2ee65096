"""One job of a study in a process of its own: `python -m copd.lab.compare.process STUDY METHOD SEED`.

Its standard input is a pipe that the scheduler holds: when that ends, for whatever reason, so does
the job. Nothing is lost, as files are complete or not there. Knows no torch until it has begun.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from copd.config.study import Study
from copd.lab.compare.jobs import STUDY_FILE, study_jobs

LOCK = ".lock"
"""Held by the process that works in a folder, and its number."""


def main(argv: Sequence[str]) -> int:
    """0 when the job is done, 1 for a mistake of the user, as one sentence."""
    if select.select([0], [], [], 0)[0]:  # nobody writes: the scheduler died while this imported
        return 1
    Thread(target=_end_with_scheduler, daemon=True).start()
    root, method, seed = Path(argv[0]), argv[1], int(argv[2])
    study = Study.model_validate_json((root / STUDY_FILE).read_text(encoding="utf-8"))
    jobs = study_jobs(study, root)
    [job] = (job for job in jobs if (job.method, job.seed) == (method, seed))
    with _alone(job.root):
        from copd.lab.compare.work import work

        try:
            work(job, jobs)
        except (ValueError, FloatingPointError, FileNotFoundError) as error:
            print(f"error: {error}", flush=True)
            return 1
    return 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process per folder: waits for one that is still ending."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _end_with_scheduler() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
