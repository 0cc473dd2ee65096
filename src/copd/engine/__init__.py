"""Engines: hold the branches of a run and call their methods, in this process or on Ray."""

from copd.config import Config, LocalEngineConfig
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
    """Create the engine that `config.engine` selects.

    Args:
        config: Configuration of the run.

    Returns:
        An engine without branches.

    Raises:
        ValueError: If the engine needs Ray, which is not installed.
    """
    if isinstance(config.engine, LocalEngineConfig):
        return LocalEngine(config)
    try:
        from copd.engine.ray import RayEngine
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise ValueError(
            'engine.type = "ray" needs a package that is not installed: got no ray. '
            'Run `pip install "copd[ray]"`, or use engine.type = "local".'
        ) from None
    return RayEngine(config, config.engine)
