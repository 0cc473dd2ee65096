"""Where branches live: one verb, `each`, applied to many of them."""

from __future__ import annotations

from copd.config import Config, LocalEngineConfig, RayEngineConfig
from copd.engine.base import BranchLost, Engine, wait_for
from copd.engine.flow import Task, run_tasks
from copd.engine.local import LocalEngine

__all__ = ["BranchLost", "Engine", "LocalEngine", "Task", "create_engine", "run_tasks", "wait_for"]


def create_engine(config: Config) -> Engine:
    """The engine that `config.engine` names."""
    match config.engine:
        case LocalEngineConfig():
            return LocalEngine(config)
        case RayEngineConfig():
            from copd.engine.ray import RayEngine  # a package that not everybody has

            return RayEngine(config, config.engine)
