"""Domains: problems and their verifiers.

Knows no model and no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from copd.config import Config, DigitsConfig, DomainConfig, FilesConfig, GymConfig, parse_config
from copd.domains import files
from copd.domains.base import Domain
from copd.domains.digits import MODALITIES, DigitsDomain
from copd.domains.gym import load_gym

__all__ = ["Domain", "load_domains", "with_sizes"]


def load_domains(configs: Mapping[str, DomainConfig]) -> dict[str, Domain]:
    """The configured domains by name."""
    return {name: _load(name, config) for name, config in configs.items()}


def with_sizes(config: Config, say: Callable[[str], None]) -> Config:
    """The configuration with the sizes of file-borne domains filled in; says what they leave out.

    A run calls this once, and from then on its configuration alone says which problems there are.
    """
    measured = config.model_dump()
    for name, section in config.domains.items():
        if isinstance(section, FilesConfig):
            measured["domains"][name] = files.with_sizes(name, section).model_dump()
            index = files.open_files(name, section).index
            if index.bad:
                say(f"domain {name}: dropped {len(index.bad)} of {index.num_rows} problems as bad")
            for remark in files.remarks(index):
                say(f"domain {name}: {remark}")
    return config if measured == config.model_dump() else parse_config(measured)


def _load(name: str, config: DomainConfig) -> Domain:
    match config:
        case FilesConfig():
            return files.load_files(name, config)
        case GymConfig():
            return load_gym(name, config)
        case DigitsConfig():
            return _digits(name, config)


def _digits(name: str, config: DigitsConfig) -> Domain:
    return DigitsDomain(
        name=name,
        modality=config.modality,
        suites=config.suites or tuple(MODALITIES[config.modality]),
        sizes={
            "train": config.num_train,
            "validation": config.num_validation,
            "test": config.num_test,
        },
    )
