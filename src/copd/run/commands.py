"""The commands that run models: train, resume, evaluate and merge."""

from collections.abc import Mapping, Sequence
from contextlib import closing
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
from copd.run.evaluation import evaluate_branches, evaluation_request
from copd.run.merge import merge_weights
from copd.run.preflight import check_samplers
from copd.run.runner import Runner
from copd.storage import make_folder_atomically
from copd.types import Split


def train(config: Config) -> Path:
    """Train a new run.

    Args:
        config: Configuration of the run.

    Returns:
        The run directory, `config.output_dir`.

    Raises:
        ValueError: If the directory holds a run already.
    """
    root = config.output_dir
    if (root / "config.json").exists():
        raise ValueError(
            f"{root} holds a run already: expected a new directory. "
            f"Continue it with `copd resume {root}`, or choose another output_dir."
        )
    return _run(config)


def resume(run_dir: Path, overrides: Sequence[str] = ()) -> Path:
    """Continue a run after its newest checkpoint; a finished one prints its results again.

    Args:
        run_dir: Directory of the run.
        overrides: Engine settings to replace, such as `["--engine.type", "local"]`.

    Returns:
        The run directory.

    Raises:
        ValueError: If the directory holds no run.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise ValueError(
            f"{run_dir} is no run: expected a config.json in it. "
            "Name a directory that `copd train` made."
        )
    config = load_run(path, overrides)
    return _run(config.model_copy(update={"output_dir": run_dir}))


def evaluate_model(
    model: str,
    config: Config,
    *,
    split: Split,
    num_problems: int | None,
    num_samples: int | None,
    temperature: float | None,
    seed: int | None,
) -> None:
    """Print the accuracy of a model on the domains of a configuration.

    Options that are None keep the settings of the configuration.
    """
    options = {"num_problems": num_problems, "num_samples": num_samples, "temperature": temperature}
    update = {key: value for key, value in options.items() if value is not None}
    settings = config.evaluation.model_copy(update=update)
    seed = config.seed if seed is None else seed
    config = config.model_copy(update={"evaluation": settings, "seed": seed})
    config = with_sizes(config, Console(stderr=True).print)
    for name in config.domains:
        available = evaluation_request(config, name, split).num_problems
        if settings.num_problems > available:
            raise ValueError(
                f"domain {name!r} has {available} {split} problems: got {settings.num_problems} to "
                f"evaluate. Lower --num-problems, or raise domains.{name}.num_{split}."
            )
    with closing(create_engine(config)) as engine:
        engine.spawn(model, model)
        check_samplers(engine, config, [model])
        results = evaluate_branches(engine, config, [model], split=split)
    title = f"{split} accuracy with 95 % intervals over problems"
    Console().print(results_table(results, title))


def merge_models(models: Sequence[Path], out: Path, method: MergeConfig, base: Path | None) -> None:
    """Merge model folders of one base into a new folder, with the first one's tokenizer."""
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

    policies = {str(path): Policy.load(resolve(str(path))) for path in models}
    states = {path: _weights(policy) for path, policy in policies.items()}
    merged, _ = merge_weights(method, states, base_weights, accuracy)
    first = policies[str(models[0])]
    load_weights(first.parameters(), merged)
    make_folder_atomically(out, first.save)


def _weights(policy: Policy) -> Mapping[str, Tensor]:
    return {name: parameter.detach() for name, parameter in policy.parameters().items()}


def _run(config: Config) -> Path:
    with closing(create_engine(config)) as engine:
        Runner(config, engine, Console()).run()
    return config.output_dir
