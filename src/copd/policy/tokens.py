"""Tokens that end a completion, tokens that may never be sampled, and the text of each token."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from copd.policy.rendering.processors import MODEL_TYPES
from copd.policy.sources import find_model


def restrict_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> tuple[frozenset[int], Bool[Tensor, "V"]]:
    """Return a model's end tokens and a mask of its banned ones, and make `generate` follow them.

    End tokens are those that the generation settings or the tokenizer declare; they are never
    banned. Banned are media placeholders (a sampled one would need pixels that do not exist), the
    tokenizer's special tokens, tokens that the model's own settings suppress, and rows of the
    vocabulary head that no token uses.
    """
    config, generation = model.config, model.generation_config
    assert generation is not None, "models with a vocabulary head have generation settings"
    declared = generation.eos_token_id
    listed = [declared] if isinstance(declared, int) else list(declared or [])
    ends = {token for token in [*listed, tokenizer.eos_token_id] if token is not None}
    if not ends or max(ends) >= vocab_size:
        raise ValueError(
            f"a policy needs an end token: got {sorted(ends)} for a vocabulary of {vocab_size}. "
            "Set eos_token in tokenizer_config.json or eos_token_id in generation_config.json."
        )
    named = set(tokenizer.get_vocab().values())
    control = set(tokenizer.all_special_ids) | set(generation.suppress_tokens or [])
    control |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if config.model_type in MODEL_TYPES:
        control |= {config.image_token_id, config.video_token_id}
        control |= {config.vision_start_token_id, config.vision_end_token_id}
    banned = torch.tensor([i in control or i not in named for i in range(vocab_size)])
    banned[list(ends)] = False
    # the logit of a banned token is never trained, so `generate` must not sample it either
    generation.suppress_tokens = banned.nonzero()[:, 0].tolist() or None
    generation.eos_token_id = sorted(ends)
    return frozenset(ends), banned.to(model.device)


def token_reader(
    path: str, *, trust_remote_code: bool = False
) -> Callable[[Sequence[int]], list[str]]:
    """Build a function that splits a completion's text by token, special tokens included.

    A character that takes several tokens is the text of the last of them; the others have none.
    """
    tokenizer = AutoTokenizer.from_pretrained(find_model(path), trust_remote_code=trust_remote_code)

    def read(token_ids: Sequence[int]) -> list[str]:
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            return [str(tokenizer.decode([token_id])) for token_id in token_ids]
        stream = DecodeStream(skip_special_tokens=False)
        return [stream.step(tokenizer.backend_tokenizer, i) or "" for i in token_ids]

    return read
