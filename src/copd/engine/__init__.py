"""Where branches live: one verb, `each`, applied to many of them."""

from __future__ import annotations

from copd.config import Config
from copd.engine.base import Engine
from copd.engine.local import LocalEngine

__all__ = ["Engine", "LocalEngine", "create_engine"]


def create_engine(config: Config) -> Engine:
    """The engine that `config.engine` names."""
    return LocalEngine(config)
