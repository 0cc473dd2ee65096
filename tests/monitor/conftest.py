"""The configuration of a small run, shared with the tests of runs."""

from tests.run.conftest import make_config

__all__ = ["make_config"]
