"""What the command line does, without the command line: train, resume, evaluate, merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from torch import Tensor

from copd.branch.state import load_weights
from copd.config import Config, MergeConfig, load_run
from copd.domains import with_sizes
from copd.engine import create_engine
from copd.monitor.results import results_table
from copd.policy import Policy
from copd.policy.tiny import resolve
from copd.run.evaluation import evaluate as evaluate_branches
from copd.run.evaluation import evaluation_request
from copd.run.merge import merge_weights
from copd.run.preflight import check_samplers
from copd.run.runner import Runner
from copd.storage import make_folder_atomically
from copd.types import Split


def train(config: Config) -> Path:
    """Starts a run in a directory that holds none; returns the directory."""
    root = config.output_dir
    if (root / "config.json").exists():
        raise ValueError(
            f"{root} holds a run already: expected a new directory. "
            f"Continue it with `copd resume {root}`, or choose another output_dir."
        )
    return _run(config)


def resume(run_dir: Path, overrides: Sequence[str] = ()) -> Path:
    """Continues a run after its newest checkpoint; a finished one prints its table again.

    Overrides such as `--engine.type local` say where its branches live from now on.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise ValueError(
            f"{run_dir} is no run: expected a config.json in it. "
            "Name a directory that `copd train` made."
        )
    config = load_run(path, overrides)
    return _run(config.model_copy(update={"output_dir": run_dir}))


def evaluate(
    model: str,
    config: Config,
    *,
    split: Split,
    num_problems: int | None,
    num_samples: int | None,
    temperature: float | None,
    seed: int | None,
) -> None:
    """Prints the accuracy of one model on the domains of a configuration."""
    given = {"num_problems": num_problems, "num_samples": num_samples, "temperature": temperature}
    settings = config.evaluation.model_copy(
        update={k: v for k, v in given.items() if v is not None}
    )
    config = config.model_copy(
        update={"evaluation": settings, "seed": config.seed if seed is None else seed}
    )
    config = with_sizes(config, Console(stderr=True).print)
    for name in config.domains:
        available = evaluation_request(config, name, split).num_problems
        if settings.num_problems > available:
            raise ValueError(
                f"domain {name!r} has {available} {split} problems: got {settings.num_problems} to "
                f"evaluate. Lower --num-problems, or raise domains.{name}.num_{split}."
            )
    engine = create_engine(config)
    try:
        engine.spawn(model, model)
        check_samplers(engine, config, [model])
        results = evaluate_branches(engine, config, [model], split=split)
        Console().print(
            results_table(results, f"{split} accuracy with 95 % intervals over problems")
        )
    finally:
        engine.close()


def merge(models: Sequence[Path], out: Path, method: MergeConfig, base: Path | None) -> None:
    """Merges model folders of one base into a new one, with the first one's tokenizer."""
    if out.exists():
        raise ValueError(f"{out} exists already: expected a new folder. Choose another --out.")

    def base_weights() -> Mapping[str, Tensor]:
        if base is None:
            raise ValueError(
                f"merging by {method.type} needs the model the others were trained from: "
                "got no --base. Name its folder, or use --method uniform."
            )
        return _weights(Policy.load(resolve(str(base))))

    def accuracy(_: Mapping[str, Tensor]) -> float:
        raise ValueError(
            "merge weights are chosen on a configuration's validation problems: got none. "
            'Set recipe.merge.type = "validation" in a training configuration instead.'
        )

    first = Policy.load(resolve(str(models[0])))
    others = [_weights(Policy.load(resolve(str(path)))) for path in models[1:]]
    states = {
        str(path): state for path, state in zip(models, [_weights(first), *others], strict=True)
    }
    merged, _ = merge_weights(method, states, base_weights, accuracy)
    load_weights(first.parameters(), merged)
    out.parent.mkdir(parents=True, exist_ok=True)
    make_folder_atomically(out, first.save)


def _weights(policy: Policy) -> Mapping[str, Tensor]:
    return {name: parameter.detach() for name, parameter in policy.parameters().items()}


def _run(config: Config) -> Path:
    engine = create_engine(config)
    try:
        Runner(config, engine, Console()).run()
    finally:
        engine.close()
    return config.output_dir
