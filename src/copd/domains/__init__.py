"""Domains: problems and their verification."""

from collections.abc import Callable, Mapping
from pathlib import Path

from copd.config import Config, DigitsConfig, DomainConfig, FilesConfig, GymConfig, parse_config
from copd.domains.base import Domain
from copd.domains.digits import MODALITIES, DigitsDomain
from copd.domains.files import load_files, remarks
from copd.domains.gym import load_gym

__all__ = ["Domain", "load_domains", "with_sizes"]


def load_domains(
    configs: Mapping[str, DomainConfig], run_dir: Path | None = None
) -> dict[str, Domain]:
    """Load the configured domains.

    Args:
        configs: Domain name to its settings.
        run_dir: Folder of a run. An index that `with_sizes` stored there is used if it fits the
            data files, so that no media are decoded again.

    Returns:
        Domain name to domain.
    """
    return {name: _load(name, config, run_dir) for name, config in configs.items()}


def with_sizes(config: Config, say: Callable[[str], None]) -> Config:
    """Fill in the sizes of domains that are read from files, and store their indexes.

    The driver calls this before a run begins. From then on the configuration alone says which
    problems there are, and all processes of the run read the index from `config.output_dir`.

    Args:
        config: The configuration of a run.
        say: Takes remarks about the data: bad rows that are dropped, problems left out.

    Returns:
        The configuration with number of problems and fingerprint of every files domain.
    """
    measured = config.model_dump()
    for name, section in config.domains.items():
        if isinstance(section, FilesConfig):
            domain = load_files(name, section, config.output_dir, store=True)
            measured["domains"][name] = domain.measured_config().model_dump()
            index = domain.index
            if index.bad:
                say(f"domain {name}: dropped {len(index.bad)} of {index.num_rows} problems as bad")
            for remark in remarks(index):
                say(f"domain {name}: {remark}")
    return config if measured == config.model_dump() else parse_config(measured)


def _load(name: str, config: DomainConfig, run_dir: Path | None) -> Domain:
    match config:
        case FilesConfig():
            return load_files(name, config, run_dir)
        case GymConfig():
            return load_gym(name, config)
        case DigitsConfig():
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
