"""One co-evolving policy: it samples, scores other branches' completions, and updates."""

from copd.branch.branch import Branch
from copd.branch.diverged import Diverged
from copd.branch.sampler_check import SamplerCheck

__all__ = ["Branch", "Diverged", "SamplerCheck"]
