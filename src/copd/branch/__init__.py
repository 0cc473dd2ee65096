"""One co-evolving policy: it samples, is asked to score, and updates.

Knows nothing of plans, engines or runs.
"""

from copd.branch.branch import Branch
from copd.branch.diverged import Diverged
from copd.branch.sampler_check import SamplerCheck

__all__ = ["Branch", "Diverged", "SamplerCheck"]
