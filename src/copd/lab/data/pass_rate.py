"""Asks a model its training problems, and keeps those it solves sometimes. Trains nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from copd.branch.prompts import PromptCache
from copd.branch.sampling import sample_batches
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
"""Problems asked at once, and kept at once. Each chunk has a seed of its own."""


def pass_rates(
    config: Config,
    name: str,
    *,
    keep: tuple[float, float],
    out: Path | None,
    rates: Path | None,
    as_json: bool,
) -> None:
    """Prints how often `config.model` solves the training problems of a domain.

    With `out`, writes those with a rate between the bounds of `keep` there, the bounds excluded.
    What `rates` holds already is not asked again.
    """
    domain = _open(name, config, out)
    file = None
    if rates is not None:
        if not rates.parent.is_dir():
            raise ValueError(f"--rates must be in a folder that exists: got {rates}. Make it.")
        file = RatesFile(rates, _settings(config, name, domain))
    found = _measure(config, domain, file)
    report: dict[str, Any] = {
        "model": config.model.path,
        "problems": len(found),
        "completions": config.rollout.group_size,
        "rates": None if rates is None else str(rates),
    }
    kept = {rate.index: rate.pass_rate for rate in found if keep[0] < rate.pass_rate < keep[1]}
    histogram = Histogram.of(found)
    report |= {"histogram": vars(histogram), "kept": len(kept), "bounds": list(keep)}
    if out is not None:
        assert isinstance(domain, FilesDomain), "others are refused before a model is loaded"
        report |= _write(domain, kept, out)
    print(json.dumps(report, indent=2) if as_json else _text(report, found))


def _open(name: str, config: Config, out: Path | None) -> Domain:
    """The domain, once it is known that what was asked for can be done."""
    section = config.domains[name]
    if not isinstance(section, FilesConfig):
        if out is not None:
            raise ValueError(
                f"domain {name!r} makes its problems and has no file that could be filtered: got "
                f"--out {out}. Leave --out away; --rates FILE keeps the rates of its problems."
            )
        return load_domains({name: section})[name]
    domain = open_usable(name, section)
    check_functions(domain.verifier)
    if not domain.num_problems("train"):
        raise ValueError(f"domain {name!r} has no training problems to ask. Check its path.")
    if out is not None:
        check_target(domain, out)
    return domain


def _settings(config: Config, name: str, domain: Domain) -> dict[str, Any]:
    """All that rates depend on; where files are does not count, what they ask does."""
    places = {"path", "validation_path", "test_path", "media_root", "fingerprint"}
    asked = config.domains[name].model_dump(mode="json", exclude=places)
    if isinstance(domain, FilesDomain):
        asked["fingerprint"] = domain.index.fingerprint
    return {
        "model": config.model.path,
        "dtype": config.model.dtype,
        "seed": config.seed,
        "rollout": config.rollout.model_dump(exclude={"num_prompts", "sampler", "vllm"}),
        "domain": {"name": name, **asked},
    }


def _measure(config: Config, domain: Domain, file: RatesFile | None) -> list[Rate]:
    """The rates of all training problems, in their order."""
    total = domain.num_problems("train")
    found = [] if file is None else file.known(total=total, chunk=_CHUNK)
    if len(found) < total:
        ask = _asker(config, domain)
        console = Console(stderr=True)
        firsts = range(len(found), total, _CHUNK)
        for first in track(firsts, description="asking", console=console):
            rates = ask(range(first, min(first + _CHUNK, total)))
            found += rates
            if file is not None:
                file.add(rates)
    if file is not None:
        file.finish(found)
    return found


def _asker(config: Config, domain: Domain) -> Callable[[range], list[Rate]]:
    """Loads the model; what it returns asks it some training problems."""
    engine, rollout = config.engine, config.rollout
    if isinstance(engine, LocalEngineConfig) and engine.num_threads is not None:
        torch.set_num_threads(engine.num_threads)
    policy = load_policy(config.model.path, config.model)
    require_readable(domain, policy, config.model.path)
    book = PromptCache({domain.name: domain}, policy.render_all)

    def ask(indices: range) -> list[Rate]:
        names = [ProblemId(domain.name, "train", index) for index in indices]
        seed = derive_seed(config.seed, domain.name, "train", "pass rate", indices.start)
        wanted = SamplingRequest(
            book.prompts(names), rollout.group_size, rollout.temperature, seed, num_prompts=_CHUNK
        )
        sampled = sample_batches(
            policy,
            [wanted],
            max_completion_tokens=rollout.max_completion_tokens,
            max_prompt_tokens=config.optimizer.micro_batch_tokens,
            max_rows=rollout.max_rows,
            precision=config.model.dtype,
        )
        rewards = book.verify_groups(names, sampled.groups[0])
        return [
            Rate(
                index=name.index,
                suite=book.problem(name).suite,
                pass_rate=float((own >= 1.0).mean()),
                mean_reward=float(own.mean()),
                **_place(domain, name.index),
            )
            for name, own in zip(names, rewards, strict=True)
        ]

    return ask


def _place(domain: Domain, index: int) -> dict[str, Any]:
    """Where a problem stands, if it comes from a file."""
    if not isinstance(domain, FilesDomain):
        return {}
    number, row = domain.places("train")[index].tolist()
    table = domain.sources[number].table
    return {"file": table.name, "line": table.number(row)}


def _write(domain: FilesDomain, kept: dict[int, float], out: Path) -> dict[str, Any]:
    if not kept:
        raise ValueError(
            f"no problem has a pass rate between the bounds: {out} would have nothing to train "
            "on. Widen --keep, or raise rollout.group_size to tell rare successes from none."
        )
    num_held_out = 0

    def fill(aside: Path) -> None:
        nonlocal num_held_out
        num_held_out = write_filtered(domain, kept, aside)

    make_file_atomically(out, fill)
    return {"out": str(out), "held_out": num_held_out, "paths": _paths(domain, out)}


def _paths(domain: FilesDomain, out: Path) -> dict[str, Any]:
    """The settings of a domain that trains on the filtered file and is measured as before."""
    config = domain.config
    paths: dict[str, Any] = {"path": str(out)}
    given = {source.split for source in domain.sources}
    if "validation" in given:
        paths["validation_path"] = config.validation_path or config.path
    if "test" in given:
        paths["test_path"] = config.test_path or config.path
    return paths


def _text(report: dict[str, Any], found: Sequence[Rate]) -> str:
    samples = report["completions"]
    lines = [
        f"pass rates of {report['model']} on {len(found)} training problems, "
        f"{samples} completions each:",
        *rate_lines(found, samples),
        f"{report['kept']} of them between the bounds {report['bounds'][0]:g} and "
        f"{report['bounds'][1]:g}, which are excluded",
    ]
    if report["rates"] is not None:
        lines.append(f"rates by problem: {report['rates']}")
    if "out" in report:
        also = f", and {report['held_out']} held-out ones as they are" if report["held_out"] else ""
        lines.append(f"written: the {report['kept']} problems{also}. To train on them:")
        lines += [f"  {key} = {json.dumps(value)}" for key, value in report["paths"].items()]
    return "\n".join(lines)
