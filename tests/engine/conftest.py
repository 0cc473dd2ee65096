"""Ray for the tests of engines, with time limits that do not depend on how busy the machine is."""

import os
from collections.abc import Iterator

import pytest

for limit in (
    "RAY_gcs_server_port_wait_time_s",
    "RAY_gcs_server_request_timeout_seconds",
    "RAY_worker_register_timeout_seconds",
):
    os.environ.setdefault(limit, "900")  # Ray reads them when it is imported or starts a process
os.environ.setdefault("RAY_health_check_timeout_ms", "900000")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster on this machine for all tests of a module."""
    ray = pytest.importorskip("ray")
    from copd.config import RayEngineConfig
    from copd.engine.ray import join

    assert join(RayEngineConfig())
    yield
    ray.shutdown()
