"""All branches in this process, one after another.

The laptop's engine, and the reference for every other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

from copd.branch import Branch
from copd.branch.prompts import PromptBook
from copd.config import Config
from copd.domains import load_domains
from copd.policy import Policy
from copd.policy.tiny import resolve

Input = TypeVar("Input")
Output = TypeVar("Output")


class LocalEngine:
    """Branches in a dictionary; `each` is a loop over it."""

    def __init__(self, config: Config) -> None:
        if config.engine.num_threads is not None:
            torch.set_num_threads(config.engine.num_threads)
        self._config = config
        self._domains = load_domains(config.domains)
        self._branches: dict[str, Branch] = {}
        self._book: PromptBook | None = None

    def spawn(self, name: str, model: str) -> None:
        assert name not in self._branches, f"branch {name!r} exists already"
        config = self._config.model
        policy = Policy.load(
            resolve(model),
            device=_device(config.device),
            trust_remote_code=config.trust_remote_code,
        )
        for domain in self._domains.values():
            if domain.modality not in policy.modalities:
                raise ValueError(
                    f"domain {domain.name!r} needs a model that reads {domain.modality}: {model!r} "
                    f"reads {', '.join(sorted(policy.modalities))}. Choose a vision-language model "
                    f"in model.path, or remove domains.{domain.name}."
                )
        if self._book is None:
            self._book = PromptBook(self._domains, policy.render)
        self._branches[name] = Branch(name, policy, self._book, self._config)

    def drop(self, name: str) -> None:
        del self._branches[name]

    def each(
        self, verb: Callable[[Branch, Input], Output], inputs: Mapping[str, Input]
    ) -> dict[str, Output]:
        return {name: verb(self._branches[name], value) for name, value in inputs.items()}

    def close(self) -> None:
        self._branches.clear()


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            'model.device is "cuda" and torch sees no CUDA device. Use "cpu" or "auto".'
        )
    return wanted
