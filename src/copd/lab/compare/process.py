"""One job of a study as a process: `python -m copd.lab.compare.process STUDY METHOD SEED`.

Its standard input is a pipe from the scheduler. When the pipe closes, for whatever reason, the job
exits. Nothing is lost, because files are written atomically.
"""

import fcntl
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from copd.config.study import Study
from copd.lab.compare.jobs import STUDY_FILE, find_job, study_jobs

LOCK = ".lock"
"""Locked by the process that works in a folder; holds its process id."""


def main(argv: Sequence[str]) -> int:
    """Run the job; return 0 when it is done, 1 after an error, which is printed as a sentence."""
    if select.select([0], [], [], 0)[0]:  # closed: the scheduler died during the imports
        return 1
    Thread(target=_exit_with_scheduler, daemon=True).start()
    root, method, seed = Path(argv[0]), argv[1], int(argv[2])
    study = Study.model_validate_json((root / STUDY_FILE).read_text(encoding="utf-8"))
    jobs = study_jobs(study, root)
    job = find_job(jobs, method, seed)
    with _locked(job.root):
        from copd.lab.compare.work import run_job

        try:
            run_job(job, jobs)
        except (ValueError, FloatingPointError, FileNotFoundError) as error:
            print(f"error: {error}", flush=True)
            return 1
    return 0


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Allow one process per folder; wait for one that is still exiting."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _exit_with_scheduler() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
