"""A whole study in real processes: killed from above and from below, continued, and tabulated."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from copd.cli import main
from copd.config.study import load_study
from copd.lab.compare.jobs import STUDY_FILE, Job, study_jobs
from copd.lab.compare.process import LOCK
from copd.lab.compare.progress import is_done
from copd.lab.compare.scheduler import LOG, Scheduler
from copd.lab.compare.view import StudyView
from copd.lab.compare.work import run_job
from copd.lab.study import load_results

pytestmark = pytest.mark.timeout(900)


class Watcher(StudyView):
    """Records what happens, and acts when it sees a job at work."""

    def __init__(self, act: Callable[[Job], None] = lambda job: None) -> None:
        self.act = act
        self.events: list[str] = []

    def started(self, job: Job) -> None:
        self.events.append(f"{job.name} started")

    def ended(self, job: Job, reason: str | None) -> None:
        self.events.append(f"{job.name} {'done' if reason is None else 'failed'}")

    def refresh(self, running: Sequence[Job]) -> None:
        for job in running:
            if is_held(job.root):
                self.act(job)


def is_held(folder: Path) -> bool:
    """True while a process works in the folder."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def until(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("it never happened")


@pytest.fixture(scope="module")
def killed(study_file) -> tuple[Path, tuple[Job, ...]]:
    """A study whose command is killed while its first jobs work."""
    path = study_file()
    study = load_study(path, ["--seeds", "[0]"])
    jobs = study_jobs(study, study.output_dir)
    words = [sys.executable, "-m", "copd", "compare", str(path), "--seeds", "[0]"]
    command = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    until(lambda: any(is_held(job.root) for job in jobs))
    command.send_signal(signal.SIGKILL)
    command.wait()
    until(lambda: not any(is_held(job.root) for job in jobs))
    return path, jobs


def test_a_killed_study_goes_on_and_ends_as_if_nothing_had_happened(
    killed, run_alone, end_state, tmp_path, capsys
):
    path, jobs = killed
    assert [job.name for job in jobs] == ["the base", "experts, seed 0", "opd, seed 0"]
    root, dead = path.parent / "out", []
    lock = jobs[1].root / LOCK
    stale = lock.read_text() if lock.exists() else ""

    def kill_experts(job: Job) -> None:
        number = (job.root / LOCK).read_text()
        if job.method == "experts" and number not in ("", stale) and not dead:
            dead.append(job)
            os.kill(int(number), signal.SIGKILL)

    waiting = [job for job in jobs if not is_done(job)]
    failed = Scheduler(root, waiting, 2, Watcher(kill_experts)).run()
    assert failed["experts, seed 0"].startswith("killed by signal 9; the end of ")
    assert is_done(jobs[0])

    assert main(["compare", str(path), "--seeds", "[0]", "--tables"]) == 0
    assert "not finished: experts, seed 0" in capsys.readouterr().out
    assert main(["compare", str(path), "--seeds", "[0]"]) == 0
    assert "opd text <- image" in (root / "table.md").read_text()
    results = load_results(root / "results.json")
    assert results.missing == ()
    assert results.columns == (
        "base",
        "expert text",
        "expert image",
        "experts: average",
        "opd text <- image",
    )
    assert results.settings["own_budget"] == ["expert text", "expert image"]
    note = "the same number of branch steps; on budgets of their own: expert text, expert image."
    assert note in (root / "table.md").read_text()
    costs = {outcome.column: outcome.cost["steps"] for outcome in results.outcomes}
    assert list(costs.values()) == [0, 3, 3, 6, 6]
    _, text, image, both, _ = (outcome.seconds for outcome in results.outcomes)
    assert 0 < text < both and text + image == pytest.approx(both)
    for job in jobs[1:]:
        alone = end_state(run_alone(job.config, tmp_path / job.method))
        found = end_state(job.root)
        assert {name for name in alone if alone[name] != found[name]} == set()

    times = {p: p.stat().st_mtime_ns for p in (root / "runs").rglob("*")}
    assert main(["compare", str(path), "--seeds", "[0]"]) == 0
    assert {p: p.stat().st_mtime_ns for p in (root / "runs").rglob("*")} == times


def test_a_job_whose_scheduler_is_gone_does_not_begin(make_study, tmp_path):
    """Its folder may by then belong to the job of another scheduler."""
    study = make_study("--seeds", "[0]")
    (tmp_path / STUDY_FILE).write_text(study.model_dump_json())
    words = [sys.executable, "-m", "copd.lab.compare.process", str(tmp_path), "experts", "0"]
    for _ in range(5):
        assert subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode == 1
    assert not (tmp_path / "runs").exists()


def test_a_job_that_fails_is_reported_and_what_builds_on_it_not_started(make_study, tmp_path):
    study = make_study("--seeds", "[0]", "--common.optimizer.learning_rate", "1e30")
    (tmp_path / STUDY_FILE).write_text(study.model_dump_json())
    _, experts, opd = study_jobs(study, tmp_path)
    watcher = Watcher()
    failed = Scheduler(tmp_path, [experts, opd], 2, watcher).run()
    assert watcher.events == [
        "experts, seed 0 started",
        "experts, seed 0 failed",
        "opd, seed 0 failed",
    ]
    reason = failed[experts.name]
    assert reason.startswith(f"exit code 1; the end of {experts.root / LOG}:")
    assert "error: branch " in reason and "Traceback" not in reason
    assert failed[opd.name].startswith("not started, because experts, seed 0 failed")
    assert not opd.root.exists()


def test_a_plan_that_ends_before_its_tokens_is_refused(make_study, tmp_path):
    words = ["--equal", "tokens", "--tokens", "9999", "--methods.experts.budget", "own"]
    jobs = study_jobs(make_study(*words), tmp_path)
    [opd] = (job for job in jobs if job.name == "opd, seed 0")
    with pytest.raises(ValueError, match=r"tokens, expected 9,999\. Give its recipe more steps"):
        run_job(opd, jobs)


def test_an_interrupt_ends_the_jobs(killed):
    path, _ = killed
    study = load_study(path, ["--seeds", "[5]"])
    root = path.parent / "out"
    jobs = study_jobs(study, root)
    (root / STUDY_FILE).write_text(study.model_dump_json())

    def interrupt(job: Job) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Scheduler(root, jobs[1:2], 1, Watcher(interrupt)).run()
    assert not any(is_held(job.root) for job in jobs)
