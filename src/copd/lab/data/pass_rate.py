"""Measure how often a model solves its training problems, and filter them by that rate."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from copd.branch.micro_batches import Forward
from copd.branch.prompts import PromptCache
from copd.branch.sampling import InProcessSampler
from copd.config import Config, FilesConfig, LocalEngineConfig
from copd.domains import Domain, load_domains
from copd.domains.files import FilesDomain, open_usable
from copd.domains.files.filtered import check_target, write_filtered
from copd.engine.local import load_policy, require_readable
from copd.lab.data.rates import Histogram, Rate, RatesFile, rate_lines
from copd.policy import SamplingRequest
from copd.run.seeds import derive_seed
from copd.storage import make_file_atomically
from copd.types import ProblemId
from copd.verifiers import check_functions

_CHUNK = 64
"""Problems that are sampled and saved together; each chunk has its own seed."""


def pass_rates(
    config: Config,
    name: str,
    *,
    keep: tuple[float, float],
    out: Path | None,
    rates: Path | None,
    as_json: bool,
) -> None:
    """Print how often `config.model` solves the training problems of a domain.

    Problems with a rate strictly between the bounds of `keep` are written to `out`. Rates that are
    already in `rates` are not measured again.
    """
    domain = _open(name, config, out)
    file = None
    if rates is not None:
        if not rates.parent.is_dir():
            raise ValueError(
                f"--rates must be in a folder that exists: got {rates}. Make the folder."
            )
        file = RatesFile(rates, _settings(config, name, domain))
    found = _measure(config, domain, file)
    low, high = keep
    selected = {rate.index: rate.pass_rate for rate in found if low < rate.pass_rate < high}
    report: dict[str, Any] = {
        "model": config.model.path,
        "problems": len(found),
        "completions": config.rollout.group_size,
        "rates": None if rates is None else str(rates),
        "histogram": vars(Histogram.of(found)),
        "kept": len(selected),
        "bounds": list(keep),
    }
    if out is not None:
        assert isinstance(domain, FilesDomain), "_open refuses other domains"
        report |= _write(domain, selected, out)
    print(json.dumps(report, indent=2) if as_json else _text(report, found))


def _open(name: str, config: Config, out: Path | None) -> Domain:
    """Open the domain; raise a ValueError if it cannot be measured, or filtered to `out`."""
    section = config.domains[name]
    if not isinstance(section, FilesConfig):
        if out is not None:
            raise ValueError(
                f"domain {name!r} generates its problems, so there is no file to filter: got "
                f"--out {out}. Remove --out; --rates FILE saves the rates of its problems."
            )
        return load_domains({name: section})[name]
    domain = open_usable(name, section)
    check_functions(domain.verifier)
    if not domain.num_problems("train"):
        raise ValueError(f"domain {name!r} has no training problems to measure. Check its path.")
    if out is not None:
        check_target(domain, out)
    return domain


def _settings(config: Config, name: str, domain: Domain) -> dict[str, Any]:
    """Return all that rates depend on: the content of data files, but not their paths."""
    paths = {"path", "validation_path", "test_path", "media_root", "fingerprint"}
    section = config.domains[name].model_dump(mode="json", exclude=paths)
    if isinstance(domain, FilesDomain):
        section["fingerprint"] = domain.index.fingerprint
    return {
        "model": config.model.path,
        "dtype": config.model.dtype,
        "seed": config.seed,
        "rollout": config.rollout.model_dump(exclude={"num_prompts", "sampler", "vllm"}),
        "domain": {"name": name, **section},
    }


def _measure(config: Config, domain: Domain, file: RatesFile | None) -> list[Rate]:
    """Return the rates of all training problems in order, measuring those not in the file."""
    total = domain.num_problems("train")
    found = [] if file is None else file.known(total=total, chunk=_CHUNK)
    if len(found) < total:
        measure = _loaded(config, domain)
        firsts = range(len(found), total, _CHUNK)
        for first in track(firsts, description="sampling", console=Console(stderr=True)):
            rates = measure(range(first, min(first + _CHUNK, total)))
            found += rates
            if file is not None:
                file.add(rates)
    if file is not None:
        file.finish(found)
    return found


def _loaded(config: Config, domain: Domain) -> Callable[[range], list[Rate]]:
    """Load the model; return a function that measures its rates on some training problems."""
    engine, rollout = config.engine, config.rollout
    if isinstance(engine, LocalEngineConfig) and engine.num_threads is not None:
        torch.set_num_threads(engine.num_threads)
    policy = load_policy(config.model.path, config.model)
    require_readable(domain, policy, config.model.path)
    cache = PromptCache({domain.name: domain}, policy.render_all)
    forward = Forward(policy, config.optimizer.micro_batch_tokens, config.model.dtype)
    sampler = InProcessSampler(forward, rollout.max_rows)

    def measure(indices: range) -> list[Rate]:
        names = [ProblemId(domain.name, "train", index) for index in indices]
        seed = derive_seed(config.seed, domain.name, "train", "pass rate", indices.start)
        request = SamplingRequest(
            cache.prompts(names), rollout.group_size, rollout.temperature, seed, num_prompts=_CHUNK
        )
        sampled = sampler.sample([request], rollout.max_completion_tokens)
        rewards = cache.verify_groups(names, sampled.completions[0].texts)
        return [
            Rate(
                index=name.index,
                suite=cache.problem(name).suite,
                pass_rate=float((own >= 1.0).mean()),
                mean_reward=float(own.mean()),
                **_place(domain, name.index),
            )
            for name, own in zip(names, rewards, strict=True)
        ]

    return measure


def _place(domain: Domain, index: int) -> dict[str, Any]:
    """Return the file and line of a training problem, if it comes from a file."""
    if not isinstance(domain, FilesDomain):
        return {}
    number, row = domain.places("train")[index].tolist()
    table = domain.sources[number].table
    return {"file": table.name, "line": table.number(row)}


def _write(domain: FilesDomain, selected: dict[int, float], out: Path) -> dict[str, Any]:
    """Write the selected problems; return the settings with which a run trains on them."""
    if not selected:
        raise ValueError(
            f"no problem has a pass rate between the bounds, so {out} would be empty. Widen "
            "--keep, or raise rollout.group_size to measure small rates."
        )
    num_held_out = 0

    def fill(path: Path) -> None:
        nonlocal num_held_out
        num_held_out = write_filtered(domain, selected, path)

    make_file_atomically(out, fill)
    config = domain.config
    paths: dict[str, Any] = {"path": str(out)}
    given = {source.split for source in domain.sources}
    if "validation" in given:
        paths["validation_path"] = config.validation_path or config.path
    if "test" in given:
        paths["test_path"] = config.test_path or config.path
    return {"out": str(out), "held_out": num_held_out, "paths": paths}


def _text(report: dict[str, Any], found: Sequence[Rate]) -> str:
    samples, selected, (low, high) = report["completions"], report["kept"], report["bounds"]
    lines = [
        f"pass rates of {report['model']} on {len(found)} training problems, "
        f"{samples} completions each:",
        *rate_lines(found, samples),
        f"above {low:g} and below {high:g}: {selected} problems",
    ]
    if report["rates"] is not None:
        lines.append(f"rates by problem: {report['rates']}")
    if "out" in report:
        also = f" and all {report['held_out']} held-out ones" if report["held_out"] else ""
        lines.append(f"written: these {selected} problems{also}. To train on them, set:")
        lines += [f"  {key} = {json.dumps(value)}" for key, value in report["paths"].items()]
    return "\n".join(lines)
