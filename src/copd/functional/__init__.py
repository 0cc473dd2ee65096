"""Losses, divergences, advantages and merging rules, as pure functions of tensors and numbers."""

from copd.functional.advantages import group_relative
from copd.functional.aggregation import Aggregation, token_weights
from copd.functional.distill import (
    DivergenceForm,
    chunked_divergence_loss,
    control_variate,
    divergence_loss,
    domain_scale,
    reward_extrapolation,
    sampled_reverse_kl,
)
from copd.functional.divergence import (
    entropy,
    forward_kl,
    jensen_shannon,
    kl_k1,
    kl_k2,
    kl_k3,
    reverse_kl,
    symmetric_kl,
    topk_buckets,
    topk_overlap,
)
from copd.functional.logprobs import full_logprobs, token_logprobs, topk_logprobs
from copd.functional.lowrank import merge_entries, nearest_of_rank, sum_changes
from copd.functional.merging import (
    average,
    choose_weights,
    dare,
    simplex_grid,
    task_arithmetic,
    ties,
)
from copd.functional.policy_loss import clipped_surrogate

__all__ = [
    "Aggregation",
    "DivergenceForm",
    "average",
    "choose_weights",
    "chunked_divergence_loss",
    "clipped_surrogate",
    "control_variate",
    "dare",
    "divergence_loss",
    "domain_scale",
    "entropy",
    "forward_kl",
    "full_logprobs",
    "group_relative",
    "jensen_shannon",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "merge_entries",
    "nearest_of_rank",
    "reverse_kl",
    "reward_extrapolation",
    "sampled_reverse_kl",
    "simplex_grid",
    "sum_changes",
    "symmetric_kl",
    "task_arithmetic",
    "ties",
    "token_logprobs",
    "token_weights",
    "topk_buckets",
    "topk_logprobs",
    "topk_overlap",
]
