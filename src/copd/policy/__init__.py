"""Policies: models that are asked, sampled, trained. Only this package knows transformers."""

from copd.policy.adapters import Adapters
from copd.policy.policy import Policy
from copd.policy.readers.packed import PackedStates, SharedPrefix
from copd.policy.rendering.render import Prompt
from copd.policy.sampling.protocol import Sampler, SamplingRequest, SamplingResult
from copd.policy.sampling.sampler import Draw
from copd.policy.vocabulary import Vocabulary, require_same, vocabulary_of

__all__ = [
    "Adapters",
    "Draw",
    "PackedStates",
    "Policy",
    "Prompt",
    "Sampler",
    "SamplingRequest",
    "SamplingResult",
    "SharedPrefix",
    "Vocabulary",
    "require_same",
    "vocabulary_of",
]
