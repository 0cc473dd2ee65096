"""The words of `copd plan --cluster`: from a configuration and assumptions to what is asked."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from copd.cli.numbers import count

if TYPE_CHECKING:
    from copd.config import Config
    from copd.planning.cluster import Machine, Widths, Workload
    from copd.planning.cluster.table import Cluster
    from copd.recipes import Plan

OWN_OPTIONS = ("--cluster", "--gpus", "--assume")
GPUS = ("a100", "h100", "h200")

_SHAPES = {
    "text": (256, 0, 0),
    "image": (256, 1024, 1),
    "video": (256, 4096, 16),
}
"""Tokens of text, visual tokens and pictures of a prompt that are assumed, by modality."""

_DIGITS = {"text": (45, 0, 0), "image": (35, 16, 1), "video": (75, 24, 6)}
"""The same of the built-in world on the embedded base."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Which machines, how many, and what else is assumed."""
    about = "also predict seconds of a step on such GPUs (h100)"
    parser.add_argument("--cluster", nargs="?", const="h100", choices=GPUS, help=about)
    numbers = "how many there may be (3 8 24 64)"
    parser.add_argument("--gpus", metavar="N", type=count, nargs="+", help=numbers)
    assume = "other rates, prompts or lengths than the prediction lists"
    parser.add_argument("--assume", metavar="NAME=VALUE", nargs="+", action="extend", help=assume)


def cluster_of(arguments: argparse.Namespace, config: Config, plan: Plan) -> Cluster | None:
    """What is asked about a cluster, if anything."""
    if arguments.cluster is None:
        if arguments.gpus or arguments.assume:
            raise ValueError(
                "--gpus and --assume are about a cluster: got no --cluster. Add --cluster."
            )
        return None
    from copd.planning.cluster import MACHINES, Setup
    from copd.planning.cluster.table import Cluster

    wanted = _assumed(arguments.assume or ())
    widths, model = _widths(config.model.path), config.model
    machine = _machine(MACHINES[arguments.cluster], wanted)
    mean = arguments.completion_tokens or config.rollout.max_completion_tokens
    loads = {name: _load(config, name, widths, wanted, mean) for name in config.domains}
    if wanted:
        raise ValueError(
            f"--assume names something that the prediction lists: got {', '.join(wanted)}. "
            "See the end of its output."
        )
    lora = model.branches == "lora"
    setup = Setup(
        widths,
        config.optimizer.micro_batch_tokens,
        config.rollout.max_rows,
        trains_vision=not (model.frozen_vision or lora),
        lora=lora,
        checkpointing=model.gradient_checkpointing,
        eight_bit=config.optimizer.type == "adamw_8bit",
    )
    probes, top_k = config.monitor.num_probe_tokens, config.monitor.score_top_k
    return Cluster(model.path, machine, setup, plan, loads, probes, top_k)


def describe(cluster: Cluster, arguments: argparse.Namespace) -> str:
    """The prediction as text."""
    from copd.planning.cluster import describe_cluster

    return describe_cluster(cluster, _gpus(arguments, cluster.plan))


def to_list(cluster: Cluster, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The prediction as plain values."""
    from copd.planning.cluster.table import predicted

    return predicted(cluster, _gpus(arguments, cluster.plan))


def _gpus(arguments: argparse.Namespace, plan: Plan) -> Sequence[int]:
    """Numbers of GPUs with one at least for every branch."""
    least = len(plan.branches)
    gpus = [n for n in arguments.gpus or (3, 8, 24, 64) if arguments.gpus or n >= least]
    if min(gpus, default=0) < least:
        raise ValueError(
            f"--gpus must be at least one for each of the {least} branches: got "
            f"{' '.join(map(str, gpus)) or 'fewer'}. Name larger numbers."
        )
    return gpus


def _assumed(words: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if not 0 <= found[name] < float("inf"):
            raise ValueError(
                f"--assume needs NAME=VALUE with a number of at least 0: got {word!r}. "
                "Write for example --assume bandwidth_efficiency=0.5."
            )
    return found


def _machine(machine: Machine, wanted: dict[str, float]) -> Machine:
    """Takes from `wanted` what belongs to a machine."""
    own = {name: wanted.pop(name) for name in [*wanted] if name in vars(machine) and name != "name"}
    for name, value in own.items():
        if value == 0 and not name.endswith("seconds"):
            raise ValueError(f"--assume {name} must be above 0: got 0. Pass another value.")
    return replace(machine, **own)


def _load(
    config: Config, domain: str, widths: Widths, wanted: dict[str, float], mean: float
) -> Workload:
    """Takes from `wanted` what belongs to a domain."""
    from copd.planning.cluster import Lengths, Workload

    names = ("text_tokens", "visual_tokens", "pictures")
    usual = dict(zip(names, _usual(config, domain), strict=True))
    own = {name: wanted.pop(f"{domain}.{name}", usual[name]) for name in names}
    deviation = wanted.pop(f"{domain}.deviation", 0.5)
    limit = config.rollout.max_completion_tokens
    lengths = Lengths.spread(wanted.pop(f"{domain}.mean", mean), limit, deviation)
    pictures = int(own["pictures"])
    patches = int(own["visual_tokens"]) * widths.patches_per_token
    frames = (patches // pictures,) * pictures if pictures else ()
    rollout = config.rollout
    tokens = int(own["text_tokens"] + own["visual_tokens"])
    return Workload(rollout.num_prompts, rollout.group_size, max(1, tokens), frames, lengths)


def _usual(config: Config, domain: str) -> tuple[int, int, int]:
    """What is assumed of a domain's prompts; only the data could tell."""
    from copd.config import DigitsConfig, FilesConfig

    match config.domains[domain]:
        case DigitsConfig(modality=modality):
            return _DIGITS[modality]
        case FilesConfig(columns=columns) if columns.videos or columns.images:
            return _SHAPES["video" if columns.videos else "image"]
    return _SHAPES.get(domain, _SHAPES["text"])


def _widths(model: str) -> Widths:
    from copd.planning.cluster import QWEN3_VL_4B, Widths

    if model == "Qwen/Qwen3-VL-4B-Instruct":
        return QWEN3_VL_4B
    tiny = Path(str(files("copd"))) / "policy" / "tiny" / "model"
    path = (tiny if model == "tiny" else Path(model)) / "config.json"
    try:
        config: Mapping[str, object] = json.loads(path.read_text(encoding="utf-8"))
        return Widths.read(config)
    except (OSError, KeyError, ValueError):
        raise ValueError(
            f"--cluster needs the sizes of the model: got {model!r}, which has no config.json of a "
            "Qwen3-VL, Qwen3 or Llama here. Download it and name its folder in model.path."
        ) from None
