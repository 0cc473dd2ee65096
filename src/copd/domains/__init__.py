"""Domains: problems and their verifiers.

Knows no model and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

from copd.config import DomainConfig
from copd.domains.base import Domain
from copd.domains.digits import MODALITIES, DigitsDomain

__all__ = ["Domain", "load_domains"]


def load_domains(configs: Mapping[str, DomainConfig]) -> dict[str, Domain]:
    """The configured domains by name."""
    return {name: _load(name, config) for name, config in configs.items()}


def _load(name: str, config: DomainConfig) -> Domain:
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
