"""Trackers store every value once, also of a run that is interrupted and resumed.

tensorboard is always tested; wandb and trackio, offline, if they are installed:
`pip install 'copd[wandb]' 'copd[trackio]'`.
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from copd.branch import Branch
from copd.config import TrackingConfig
from copd.monitor.results import DomainResult, from_json
from copd.monitor.trackers import (
    MAKERS,
    PACKAGES,
    Trackers,
    check_installed,
    evaluation_values,
    step_values,
)
from copd.run import commands
from copd.storage import read_lines

TEXT = {"text": {"type": "digits", "modality": "text", "num_train": 50}}
RECIPE = {"type": "experts", "steps": 4, "merge": {"type": "select", "branch": "text"}}


@pytest.fixture
def config(make_config, tmp_path):
    """Return a configuration of one branch that trains in a few seconds."""

    def make(*trackers: str):
        return make_config(
            tmp_path / "run",
            domains=TEXT,
            recipe=RECIPE,
            checkpoint={"every": 2, "keep": 2},
            evaluation={"num_problems": 3, "num_samples": 2, "every": 2},
            tracking={"report_to": trackers, "project": "test-project", "run_name": "a-run"},
        )

    return make


def train_interrupted_then_resume(config, monkeypatch) -> Path:
    """Interrupt the run in step 4; step 3 comes after the checkpoint and is trained twice."""
    update, calls = Branch.update, [0]

    def interrupted(self, request):
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return update(self, request)

    with monkeypatch.context() as patched:
        patched.setattr(Branch, "update", interrupted)
        with pytest.raises(KeyboardInterrupt):
            commands.train(config)
    assert [one["step"] for one in read_lines(config.output_dir / "timings.jsonl")] == [1, 2, 3]
    return commands.resume(config.output_dir)


def expected(root: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what a tracker should have: every value of the run directory, once."""
    timings = {one["step"]: one["seconds"] for one in read_lines(root / "timings.jsonl")}
    values: dict[str, list[tuple[int, float]]] = {}
    for line in read_lines(root / "metrics.jsonl"):
        for name, value in step_values(line, timings[line["step"]], {}).items():
            values.setdefault(name, []).append((line["step"], value))
    del values["time/seconds"]  # a step that is trained twice has two
    return values


def event_files(folder: Path) -> Iterator[bytes]:
    """Yield the records of the event files: length, its checksum, content, its checksum."""
    for path in sorted(folder.iterdir()):
        data, start = path.read_bytes(), 0
        while start < len(data):
            (length,) = struct.unpack_from("<Q", data, start)
            yield data[start + 12 : start + 12 + length]
            start += 12 + length + 4


def test_tensorboard_has_every_value_once(config, monkeypatch):
    event_class = import_module("tensorboardX.proto.event_pb2").Event
    root = train_interrupted_then_resume(config("tensorboard"), monkeypatch)
    found: dict[str, list[tuple[int, float]]] = {}
    texts = []
    for record in event_files(root / "tensorboard"):
        event = event_class.FromString(record)
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            else:
                texts.append((event.step, value.tensor.string_val[0].decode()))
    assert len(list((root / "tensorboard").iterdir())) == 2  # one per session
    assert [step for step, _ in found.pop("time/seconds")] == [1, 2, 3, 4]
    evaluated = {name: found.pop(name) for name in list(found) if name.startswith("eval/")}
    values_of = expected(root)
    assert found.keys() == values_of.keys()
    for name, values in values_of.items():
        assert [step for step, _ in found[name]] == [1, 2, 3, 4], name
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in values]), name
    assert "text/rlvr/text/accuracy" in found and "text/cost/sampled_tokens" in found
    assert {name: [step for step, _ in v] for name, v in evaluated.items()} == {
        "eval/base/text": [0],
        "eval/base/mean": [0],
        "eval/text/text": [2, 4],
        "eval/text/mean": [2, 4],
    }
    final = from_json(json.loads((root / "eval.json").read_text()))["text"]["text"].accuracy
    assert evaluated["eval/text/text"][-1][1] == pytest.approx(sum(final) / 3)
    [(step, text)] = texts
    assert step == 0 and json.loads(text)["recipe"]["steps"] == 4


def log_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a wandb file, which is a LevelDB log.

    After 7 bytes of header come blocks of 32 KiB with fragments: a whole record (type 1), or its
    first, middle or last part (2, 3, 4).
    """
    start, whole = 7, b""
    while start + 7 <= len(data):
        if 32768 - start % 32768 < 7:
            start += 32768 - start % 32768
            continue
        length, kind = struct.unpack_from("<HB", data, start + 4)
        whole += data[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def test_wandb_has_every_value_once(config, monkeypatch, tmp_path):
    records = pytest.importorskip(
        "wandb.proto.wandb_internal_pb2", reason="needs pip install 'copd[wandb]'"
    )
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    root = train_interrupted_then_resume(config("wandb"), monkeypatch)
    import_module("wandb").teardown()  # waits for its process, which may still be writing
    files = sorted((root / "wandb").glob("offline-run-*/run-*.wandb"))
    run_id = json.loads((root / "trackers.json").read_text())["id"]
    assert len(files) == 2 and {path.stem for path in files} == {f"run-{run_id}"}
    steps: dict[str, list[int]] = {}
    for path in files:
        for data in log_records(path.read_bytes()):
            history = records.Record.FromString(data).history
            items = {i.key or "/".join(i.nested_key): i.value_json for i in history.item}
            for name in items.keys() - {"step"}:
                steps.setdefault(name, []).append(int(items["step"]))
    assert steps["text/rlvr/text/accuracy"] == [1, 2, 3, 4]
    assert steps["eval/text/text"] == [2, 4]
    assert steps["eval/base/text"] == [0]
    assert set(expected(root)) <= set(steps)


def test_trackio_has_every_value_once(config, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="needs pip install 'copd[trackio]'")
    root = train_interrupted_then_resume(config("trackio"), monkeypatch)
    run_id = json.loads((root / "trackers.json").read_text())["id"]
    [path] = (tmp_path / "trackio").glob("test-project*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute(
            "SELECT run_name, step, metrics FROM metrics ORDER BY id"
        ).fetchall()
    assert {name for name, _, _ in rows} == {f"a-run-{run_id}"}
    logged = [(step, json.loads(metrics)) for _, step, metrics in rows]
    assert [s for s, m in logged if "text/rlvr/text/accuracy" in m] == [1, 2, 3, 4]
    assert [s for s, m in logged if "eval/text/text" in m] == [2, 4]
    assert set(expected(root)) <= {name for _, metrics in logged for name in metrics}


class Failing:
    """A tracker whose connection is lost after a step."""

    def __init__(self, *_: object) -> None:
        self.steps: list[int] = []

    def log(self, step, values):
        if self.steps:
            raise ConnectionError("no route\nto host")
        self.steps.append(step)

    def close(self):
        raise ConnectionError


def test_a_tracker_that_fails_is_reported_once_and_the_others_go_on(config, monkeypatch, tmp_path):
    messages: list[str] = []
    made = config("wandb", "tensorboard")
    made.output_dir.mkdir()
    monkeypatch.setitem(MAKERS, "wandb", Failing)
    trackers = Trackers(made, messages.append)
    with trackers.opened(0):
        for step in range(1, 4):
            trackers.log(step, {"a": 1.0})
    assert messages == [
        "warning: tracker 'wandb' failed and gets no more metrics: no route to host. "
        "metrics.jsonl has them all."
    ]
    assert len(list(event_files(made.output_dir / "tensorboard"))) == 1 + 1 + 3  # version, config


def test_a_tracker_that_cannot_start_stops_the_run_in_a_sentence(config, monkeypatch):
    def refuse(*_: object):
        raise PermissionError("no API key")

    monkeypatch.setitem(MAKERS, "tensorboard", refuse)
    made = config("tensorboard")
    with pytest.raises(ValueError, match=r"could not start: got no API key. Correct its settings"):
        commands.train(made)
    assert not (made.output_dir / "metrics.jsonl").exists()


def test_a_missing_package_is_named_before_anything_is_written(config, monkeypatch):
    monkeypatch.setitem(PACKAGES, "trackio", "no_such_package")
    made = config("trackio")
    with pytest.raises(ValueError, match=r"pip install 'copd\[trackio\]'"):
        commands.train(made)
    assert not made.output_dir.exists()
    check_installed(TrackingConfig())


def test_metrics_are_named_by_branch_action_and_name():
    line = {
        "step": 1,
        "branches": {"text": {"opd/from_image/image/overlap": 0.9}},
        "cost": {"text": {"steps": 1}},
    }
    results = {
        "text": {
            d: DomainResult(("s", "s"), (1.0, share), (1.0, 1.0), 3.0)
            for d, share in (("x", 0.5), ("y", 0.0))
        }
    }
    assert step_values(line, 2.0, results) == {
        "text/opd/from_image/image/overlap": 0.9,
        "text/cost/steps": 1.0,
        "time/seconds": 2.0,
        "eval/text/x": 0.75,
        "eval/text/y": 0.5,
        "eval/text/mean": 0.625,
    }
    assert evaluation_values({}) == {}
