"""Where branches live: one method, `call`, applied to many of them."""

from __future__ import annotations

from copd.config import Config, LocalEngineConfig, RayEngineConfig
from copd.engine.base import BranchLost, Engine, wait_for
from copd.engine.local import LocalEngine
from copd.engine.tasks import BranchTask, run_tasks

__all__ = [
    "BranchLost",
    "BranchTask",
    "Engine",
    "LocalEngine",
    "create_engine",
    "run_tasks",
    "wait_for",
]


def create_engine(config: Config) -> Engine:
    """The engine that `config.engine` names."""
    match config.engine:
        case LocalEngineConfig():
            return LocalEngine(config)
        case RayEngineConfig():
            return _ray_engine(config, config.engine)


def _ray_engine(config: Config, settings: RayEngineConfig) -> Engine:
    """By a package that not everybody has."""
    try:
        from copd.engine.ray import RayEngine
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ValueError(
            'engine.type = "ray" needs a package that is not installed: got no ray. '
            'Run `pip install "copd[ray]"`, or use engine.type = "local".'
        ) from None
    return RayEngine(config, settings)
