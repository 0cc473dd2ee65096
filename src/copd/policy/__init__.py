"""Policies: transformers models from which completions are sampled, scored and trained.

A group of completions never repeats its prompt: `rendering` turns messages into prompts, `readers`
run prompts and completions through the model, and `sampling` decodes completions.
"""

from copd.policy.adapters import Adapters
from copd.policy.policy import Policy
from copd.policy.readers.prefix import PackedStates, SharedPrefix
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
