"""Sends a run's metrics to TensorBoard, Weights & Biases or Trackio as well. Knows no training; the
trackers' packages are imported when a run asks for them, and metrics.jsonl needs none of them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from copd.config import Config, TrackingConfig
from copd.monitor.results import Results, mean_interval, overall
from copd.storage import write_atomically

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
"""What each tracker imports; an extra of copd with the tracker's name installs it."""


class Tracker(Protocol):
    """Where numbers go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of one step; steps never go back."""
        ...

    def close(self) -> None:
        """Returns when everything is written or sent."""
        ...


class TensorBoard:
    """Event files in `RUN/tensorboard`, one per session.

    Written without tensorboardX's SummaryWriter, whose queue a killed process would lose.
    """

    def __init__(self, config: Config, run_id: str, is_new: bool) -> None:
        self._summary = import_module("tensorboardX.summary")
        self._new_event = import_module("tensorboardX.proto.event_pb2").Event
        writer = import_module("tensorboardX.event_file_writer").EventsWriter
        folder = config.output_dir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # two files of one second would have one name without the number of the session
        session = len(list(folder.glob("events.*")))
        self._writer = writer(str(folder / "events"), f".{session:04d}")
        if is_new:
            text = "    " + config.model_dump_json(indent=2).replace("\n", "\n    ")
            self._write(0, self._summary.text("config", text))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        summary = self._summary.Summary()
        for name, value in values.items():
            summary.MergeFrom(self._summary.scalar(name, value))
        self._write(step, summary)

    def close(self) -> None:
        self._writer.close()

    def _write(self, step: int, summary: Any) -> None:
        event = self._new_event(wall_time=time.time(), step=step, summary=summary)
        self._writer.write_event(event)
        self._writer.flush()


class Wandb:
    """A run at Weights & Biases, or below `RUN/wandb` with WANDB_MODE=offline."""

    def __init__(self, config: Config, run_id: str, is_new: bool) -> None:
        wandb = import_module("wandb")
        self._run = wandb.init(
            project=config.tracking.project,
            name=run_name(config),
            id=run_id,
            dir=config.output_dir,
            resume="allow",
            config=config.model_dump(mode="json") if is_new else None,
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run in Trackio's own folder, which `trackio show` opens.

    Trackio resumes by name, so the name ends in the run's id.
    """

    def __init__(self, config: Config, run_id: str, is_new: bool) -> None:
        self._run = import_module("trackio").init(
            project=config.tracking.project,
            name=f"{run_name(config)}-{run_id}",
            config=config.model_dump(mode="json"),
            resume="never" if is_new else "allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


MAKERS: dict[str, Callable[[Config, str, bool], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


class Trackers:
    """All trackers of a run as one. One that fails is told of once and then left alone.

    Each step is sent once: what a session before sent is not sent again, although it is trained
    again from the checkpoint.
    """

    def __init__(self, config: Config, say: Callable[[str], object]) -> None:
        self._config, self._say = config, say
        self._last_sent = 0
        self._open: dict[str, Tracker] = {}

    @contextmanager
    def opened(self, last_sent: int) -> Iterator[None]:
        """While this is open numbers are sent; `last_sent` is the last step sent before."""
        self._last_sent = last_sent
        try:
            self._start()
            yield
        finally:
            for name in list(self._open):
                self._attempt(name, lambda tracker: tracker.close())
            self._open = {}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step."""
        if step > self._last_sent:
            self._last_sent = step
            self.log_again(step, values)

    def log_again(self, step: int, values: Mapping[str, float]) -> None:
        """More numbers of a step, which may have been sent before: the last evaluation's."""
        for name in list(self._open):
            self._attempt(name, lambda tracker: tracker.log(step, values))

    def _start(self) -> None:
        names = dict.fromkeys(self._config.tracking.report_to)
        if not names:
            return
        run_id, is_new = _identity(self._config.output_dir / "trackers.json")
        for name in names:
            try:
                self._open[name] = MAKERS[name](self._config, run_id, is_new)
            except Exception as error:
                raise ValueError(
                    f"tracker {name!r} could not start: got {_short(error)}. "
                    "Correct its settings, or remove it from tracking.report_to."
                ) from error

    def _attempt(self, name: str, work: Callable[[Tracker], None]) -> None:
        """A tracker's own mistakes, such as a lost connection, must not end a run."""
        try:
            work(self._open[name])
        except Exception as error:
            del self._open[name]
            self._say(
                f"warning: tracker {name!r} failed and gets nothing more: {_short(error)}. "
                "metrics.jsonl has everything."
            )


def check_installed(settings: TrackingConfig) -> None:
    """Refuses trackers whose package is not there, before a run begins."""
    for name in settings.report_to:
        if find_spec(PACKAGES[name]) is None:
            raise ValueError(
                f"tracking.report_to needs a package that is not installed: got {name!r}, expected "
                f"{PACKAGES[name]}. Run `pip install 'copd[{name}]'`, or remove {name!r} from it."
            )


def run_name(config: Config) -> str:
    """What the run is called where trackers show it."""
    return config.tracking.run_name or config.output_dir.name


def step_values(
    line: Mapping[str, Any], seconds: float, results: Mapping[str, Results] | None
) -> dict[str, float]:
    """A line of metrics.jsonl as `BRANCH/ACTION/NAME`, with cost, time and what was evaluated."""
    values = {
        f"{branch}/{key}": value
        for branch, metrics in line["branches"].items()
        for key, value in metrics.items()
    }
    values |= {
        f"{branch}/cost/{count}": float(value)
        for branch, counts in line["cost"].items()
        for count, value in counts.items()
    }
    return {**values, "time/seconds": seconds, **evaluation_values(results or {})}


def evaluation_values(results: Mapping[str, Results]) -> dict[str, float]:
    """Accuracies as `eval/MODEL/DOMAIN`, their mean over domains as `eval/MODEL/mean`."""
    values: dict[str, float] = {}
    for model, own in results.items():
        values |= {f"eval/{model}/{d}": mean_interval(r.accuracy).mean for d, r in own.items()}
        values[f"eval/{model}/mean"] = overall(own).mean
    return values


def _identity(path: Path) -> tuple[str, bool]:
    """The id under which trackers know the run, and whether it is new."""
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))["id"], False
    run_id = secrets.token_hex(4)
    write_atomically(path, json.dumps({"id": run_id}))
    return run_id, True


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
