"""The examples in the docstrings of copd.functional print what they say."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import copd.functional

MODULES = [module.name for module in pkgutil.iter_modules(copd.functional.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str):
    module = importlib.import_module(f"copd.functional.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0
    assert result.failed == 0
