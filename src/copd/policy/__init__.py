"""Policies: models that are asked, sampled, trained. Only this package knows transformers."""

from copd.policy.packing import PackedStates
from copd.policy.policy import Policy
from copd.policy.render import Prompt

__all__ = ["PackedStates", "Policy", "Prompt"]
