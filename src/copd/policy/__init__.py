"""Policies: models that are asked, sampled, trained. Only this package knows transformers."""

from copd.policy.adapters import Adapters
from copd.policy.packing import PackedStates, SharedPrefix
from copd.policy.policy import Policy
from copd.policy.render import Prompt
from copd.policy.sampler import Draw
from copd.policy.samplers import Sampled, Sampler, Wanted
from copd.policy.vocabulary import Vocabulary, require_same, vocabulary_of

__all__ = [
    "Adapters",
    "Draw",
    "PackedStates",
    "Policy",
    "Prompt",
    "Sampled",
    "Sampler",
    "SharedPrefix",
    "Vocabulary",
    "Wanted",
    "require_same",
    "vocabulary_of",
]
