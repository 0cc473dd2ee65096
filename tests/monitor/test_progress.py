"""The progress of a run on a pseudo terminal, on a pipe, and after an interrupt."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import queue
import re
import threading
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from copd.branch import Branch
from copd.engine import create_engine
from copd.monitor.history import History
from copd.monitor.progress import RunProgress
from copd.monitor.view import RunView
from copd.recipes import OPD, RLVR, Plan, Stage
from copd.run.runner import Runner

NATIVE = (RLVR("text", "text"), RLVR("image", "image"))
PLAN = Plan(
    ("text", "image"),
    (Stage("rlvr", 2, NATIVE), Stage("mutual", 38, (*NATIVE, OPD("text", "image", "image")))),
)
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


def line(step: int) -> dict:
    """Return a line of metrics.jsonl."""
    stage = PLAN.stages[PLAN.locate(step - 1)[0]]
    text = {"rlvr/text/accuracy": step / 40, "rlvr/text/reward": step / 40}
    if stage.name == "mutual":
        text["opd/from_image/image/overlap"] = 0.9
    branches = {"text": text, "image": {"rlvr/image/accuracy": 0.5, "rlvr/image/reward": 0.5}}
    cost = {name: {"steps": step, "sampled_tokens": 5, "scored_tokens": 3} for name in branches}
    return {"step": step, "stage": stage.name, "branches": branches, "cost": cost}


class Terminal:
    """A pseudo terminal that records what is written to it."""

    _MARK = b"\x1e"  # never drawn

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self._bytes: queue.Queue[bytes] = queue.Queue()
        self.file = os.fdopen(slave, "w", encoding="utf-8")
        environ = {"TERM": "xterm-256color"}
        self.console = Console(file=self.file, _environ=environ, width=80, height=30)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while chunk := os.read(self._master, 65536):
                for byte in chunk:
                    self._bytes.put(bytes((byte,)))

    def received(self) -> str:
        """Return everything since the last call, up to a mark that is written now."""
        self.file.flush()
        os.write(self.file.fileno(), self._MARK)
        return b"".join(iter(lambda: self._bytes.get(timeout=60), self._MARK)).decode()

    def frame_with(self, shown: str) -> str:
        """Return everything up to a frame that shows a text."""
        text, deadline = "", time.monotonic() + 60
        while shown not in plain(text):
            assert time.monotonic() < deadline, f"{shown!r} never came, but {text!r}"
            time.sleep(0.05)
            text += self.received()
        return text

    def close(self) -> None:
        self.file.close()
        self._reader.join(60)  # else it may read from the next file with this number
        assert not self._reader.is_alive()
        os.close(self._master)


@pytest.fixture
def terminal():
    made = Terminal()
    yield made
    made.close()


def plain(text: str) -> str:
    """Remove escape sequences."""
    return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", text)


def progress(console: Console) -> RunProgress:
    return RunProgress(console, "runs/pair", History(PLAN), 10)


def between_frames(shown: RunProgress) -> contextlib.AbstractContextManager[object]:
    """Return the lock of the live view: while held, its thread draws no frame."""
    return shown._live._lock


def test_a_pipe_gets_a_line_every_twentieth_of_the_run():
    file = io.StringIO()
    with progress(
        Console(file=file, width=100, force_terminal=True)
    ) as shown:  # like FORCE_COLOR=1
        with shown.phase("evaluating the base", 3) as domain_done:
            domain_done()
        for step in range(1, 41):
            with shown.phase("evaluating the branches", 3, in_step=True):
                pass
            shown.advance(line(step), 1.0)
    lines = plain(file.getvalue()).splitlines()
    assert lines[:3] == [
        "evaluating the base",
        "step    2/40 rlvr     text   5 %  image  50 %",
        "step    4/40 mutual   text  10 %  image  50 %  overlap 0.900",
    ]
    assert len(lines) == 1 + 20
    assert "\x1b[1A" not in file.getvalue()  # nothing is redrawn


def test_a_terminal_gets_frames_in_place_and_the_last_one_stays(terminal):
    with progress(terminal.console) as shown:
        with between_frames(shown):
            first = terminal.received()
            for step in range(1, 41):
                shown.advance(line(step), 1.0)
            assert terminal.received() == ""  # a step draws nothing
        frames = terminal.frame_with("40 of 40 steps")
    last = terminal.received()
    assert first.startswith(HIDE) and "0 of 40 steps" in first
    assert frames.startswith("\r\x1b[2K\x1b[1A")
    assert last.endswith(SHOW)
    rows = plain(last).replace("\r", "").splitlines()
    assert any(row.endswith("trained") for row in rows)
    assert not any(row.startswith("step ") for row in rows)


def test_a_phase_is_shown_and_its_time_counts_for_no_step(terminal, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("copd.monitor.progress.time", SimpleNamespace(monotonic=lambda: clock[0]))
    with progress(terminal.console) as shown:
        with shown.phase("evaluating the base", 3) as domain_done:
            domain_done()
            clock[0] += 61
            during = plain(terminal.frame_with(" 1 of 3   1:01"))
        with between_frames(shown):  # a frame may have begun before the phase ended
            terminal.received()
        clock[0] += 2
        after = plain(terminal.frame_with("0:02 elapsed"))
    assert "now           evaluating the base   " in during
    assert "0:00 elapsed" in during and "1:01 elapsed" not in during
    assert "evaluating" not in after


def test_an_interrupt_leaves_a_usable_terminal(terminal):
    with pytest.raises(KeyboardInterrupt), progress(terminal.console) as shown:
        shown.advance(line(1), 1.0)
        with shown.phase("evaluating the branches", 3, in_step=True):
            raise KeyboardInterrupt
    text = terminal.received()
    assert text.endswith(f"\n{SHOW}")
    assert " 1 of 40 steps" in plain(text)


def test_the_view_costs_under_a_hundredth_of_the_time_it_is_shown_for(terminal):
    """A frame a second takes below 10 ms of CPU time, measured over a hundred frames."""
    history = History(PLAN)
    history.read([line(step) for step in range(1, 41)], [])
    view = RunView("runs/pair", history, 10)
    terminal.console.file = io.StringIO()
    terminal.console.print(view)
    began = time.process_time()
    for _ in range(100):
        terminal.console.print(view)
    assert (time.process_time() - began) / 100 < 0.010


def test_a_resumed_run_is_shown_with_its_history(make_config, tmp_path, terminal, monkeypatch):
    """After an interrupt in step 4, with a checkpoint at step 2, the first frame has 2 steps."""
    config = make_config(
        tmp_path / "run",
        domains={"text": {"type": "digits", "modality": "text", "num_train": 50}},
        recipe={"type": "experts", "steps": 4, "merge": {"type": "select", "branch": "text"}},
        checkpoint={"every": 2},
    )
    update, calls = Branch.update, [0]

    def interrupted(self, request):
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return update(self, request)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Branch, "update", interrupted)
        Runner(config, create_engine(config), terminal.console).run()
    frames = plain(terminal.received()).split("per step")
    assert " 3 of 4 steps" in frames[-2]
    Runner(config, create_engine(config), terminal.console).run()
    text = plain(terminal.received())
    first = text.split("per step")[0]
    assert " 2 of 4 steps" in first
    assert re.search(r"accuracy +\d+ to \d+ %", first)
    assert "held-out accuracy" in text.split(" trained")[-1]
