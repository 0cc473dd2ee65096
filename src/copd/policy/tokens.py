"""Which tokens end a completion, which may never be sampled, and how they read.

Knows no model weights.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from copd.policy.loading import find_model
from copd.policy.rendering.processors import MODEL_TYPES


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


def token_reader(
    path: str, *, trust_remote_code: bool = False
) -> Callable[[Sequence[int]], list[str]]:
    """Splits a completion's text into its tokens: one piece per id, special tokens included.

    A character that takes several tokens stands at the last of them, the others are "".
    """
    tokenizer = AutoTokenizer.from_pretrained(find_model(path), trust_remote_code=trust_remote_code)

    def read(token_ids: Sequence[int]) -> list[str]:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            return [str(tokenizer.decode([token_id])) for token_id in token_ids]
        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(tokenizer.backend_tokenizer, i) or "" for i in token_ids]

    return read
