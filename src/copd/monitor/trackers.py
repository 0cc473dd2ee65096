"""Trackers: send a run's metrics to TensorBoard, Weights & Biases or Trackio.

Their packages are imported only when a run uses them; metrics.jsonl needs none of them.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

from copd.config import Config, TrackingConfig
from copd.monitor.results import Results, mean_interval, overall
from copd.storage import write_atomically

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}
"""The package each tracker imports; the extra of copd with the tracker's name installs it."""


class Tracker(Protocol):
    """A destination of metrics."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of one step; steps never go back."""

    def close(self) -> None:
        """Wait until everything is written or sent."""


class TensorBoard:
    """Event files in `RUN/tensorboard`, one per session.

    tensorboardX's SummaryWriter is not used: a killed process would lose its queue.
    """

    def __init__(self, config: Config, run_id: str, is_new: bool) -> None:
        self._summary = import_module("tensorboardX.summary")
        self._new_event = import_module("tensorboardX.proto.event_pb2").Event
        writer = import_module("tensorboardX.event_file_writer").EventsWriter
        folder = config.output_dir / "tensorboard"
        folder.mkdir(exist_ok=True)
        # without the session's number, two files of the same second would have the same name
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
    """All trackers of a run. One that fails is reported once and then closed to new metrics.

    Each step is sent once, even if a resumed run trains it again from the checkpoint.
    """

    def __init__(self, config: Config, say: Callable[[str], object]) -> None:
        self._config, self._say = config, say
        self._last_sent = 0
        self._open: dict[str, Tracker] = {}

    @contextmanager
    def opened(self, last_sent: int) -> Iterator[None]:
        """Start the trackers and close them at the end; steps to `last_sent` were sent before."""
        self._last_sent = last_sent
        try:
            self._start()
            yield
        finally:
            for name in list(self._open):
                self._attempt(name, lambda tracker: tracker.close())
            self._open = {}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the numbers of a step, unless they were sent before."""
        if step > self._last_sent:
            self._last_sent = step
            self.log_again(step, values)

    def log_again(self, step: int, values: Mapping[str, float]) -> None:
        """Send more numbers of a step that may have been sent before, such as an evaluation's."""
        for name in list(self._open):
            self._attempt(name, lambda tracker: tracker.log(step, values))

    def _start(self) -> None:
        names = dict.fromkeys(self._config.tracking.report_to)
        path = self._config.output_dir / "trackers.json"
        is_new = not path.exists()
        if names and is_new:
            write_atomically(path, json.dumps({"id": secrets.token_hex(4)}))
        for name in names:
            run_id = json.loads(path.read_text(encoding="utf-8"))["id"]
            try:
                self._open[name] = MAKERS[name](self._config, run_id, is_new)
            except Exception as error:
                raise ValueError(
                    f"tracker {name!r} could not start: got {_short(error)}. "
                    "Correct its settings, or remove it from tracking.report_to."
                ) from error

    def _attempt(self, name: str, work: Callable[[Tracker], None]) -> None:
        """Drop a tracker that raises: a lost connection must not end a run."""
        try:
            work(self._open[name])
        except Exception as error:
            del self._open[name]
            self._say(
                f"warning: tracker {name!r} failed and gets no more metrics: {_short(error)}. "
                "metrics.jsonl has them all."
            )


def check_installed(settings: TrackingConfig) -> None:
    """Raise a ValueError if the package of a tracker in `report_to` is not installed."""
    for name in settings.report_to:
        if find_spec(PACKAGES[name]) is None:
            raise ValueError(
                f"tracking.report_to needs a package that is not installed: got {name!r}, expected "
                f"{PACKAGES[name]}. Run `pip install 'copd[{name}]'`, or remove {name!r} from it."
            )


def run_name(config: Config) -> str:
    """Return the run's name in trackers."""
    return config.tracking.run_name or config.output_dir.name


def step_values(
    line: Mapping[str, Any], seconds: float, results: Mapping[str, Results] | None
) -> dict[str, float]:
    """Flatten a line of metrics.jsonl to `BRANCH/ACTION/NAME`; add cost, time and accuracies."""
    values: dict[str, float] = {}
    for branch, metrics in line["branches"].items():
        values |= {f"{branch}/{key}": value for key, value in metrics.items()}
    for branch, counts in line["cost"].items():
        values |= {f"{branch}/cost/{count}": float(value) for count, value in counts.items()}
    return {**values, "time/seconds": seconds, **evaluation_values(results or {})}


def evaluation_values(results: Mapping[str, Results]) -> dict[str, float]:
    """Name accuracies `eval/MODEL/DOMAIN`, their mean over domains `eval/MODEL/mean`."""
    values: dict[str, float] = {}
    for model, own in results.items():
        values |= {f"eval/{model}/{d}": mean_interval(r.accuracy).mean for d, r in own.items()}
        values[f"eval/{model}/mean"] = overall(own).mean
    return values


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
