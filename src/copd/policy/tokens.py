"""Which tokens end a completion and which may never be sampled. Knows no model weights."""

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from copd.policy.media import MODEL_TYPES


def end_token_ids(
    generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> frozenset[int]:
    """Whatever the model's generation settings or its tokenizer call the end."""
    declared = generation.eos_token_id
    listed = [declared] if isinstance(declared, int) else list(declared or [])
    ends = {token for token in [*listed, tokenizer.eos_token_id] if token is not None}
    if not ends or max(ends) >= vocab_size:
        raise ValueError(
            f"a policy needs an end token: got {sorted(ends)} for a vocabulary of {vocab_size}. "
            "Set eos_token in tokenizer_config.json or eos_token_id in generation_config.json."
        )
    return frozenset(ends)


def banned_tokens(
    config: PreTrainedConfig,
    generation: GenerationConfig,
    tokenizer: PreTrainedTokenizerBase,
    ends: frozenset[int],
    vocab_size: int,
) -> Bool[Tensor, "V"]:
    """Tokens of log-probability -inf, in sampling and in every score.

    Media placeholders (one sampled would ask for pixels that do not exist), the tokenizer's special
    tokens, what the model's own settings suppress, and rows of the vocabulary head that no token
    uses; never an end token.
    """
    named = set(tokenizer.get_vocab().values())
    control = set(tokenizer.all_special_ids) | set(generation.suppress_tokens or [])
    control |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if config.model_type in MODEL_TYPES:
        control |= {config.image_token_id, config.video_token_id}
        control |= {config.vision_start_token_id, config.vision_end_token_id}
    banned = torch.tensor([i in control or i not in named for i in range(vocab_size)])
    banned[list(ends)] = False
    return banned
