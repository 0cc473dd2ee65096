"""A model that is asked, sampled and trained, with its tokenizer. Knows no rewards, no losses."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from copd.policy.adapters import Adapters
from copd.policy.backbone import Backbone
from copd.policy.loading import find_model, find_tokenizer, load_model, quiet
from copd.policy.readers.packed import (
    PackedStates,
    SharedPrefix,
    check_exact,
    read_completions,
    read_prompts,
)
from copd.policy.rendering.render import Prompt, Renderer
from copd.policy.sampling.sampler import Draw, Samples, sample_tokens
from copd.policy.tokens import banned_tokens, end_token_ids
from copd.types import Completion, Message


class Policy:
    """An unmodified transformers model in eval mode, read so that no group repeats its prompt.

    Training it is the caller's: `score` returns states with their graph, `model` has the weights.
    """

    def __init__(self, model: PreTrainedModel, renderer: Renderer) -> None:
        self.model = model.eval()
        self.renderer = renderer
        self._adapters: Adapters | None = None
        self._adapter: str | None = None
        self.backbone = Backbone(model)
        generation, tokenizer = model.generation_config, renderer.tokenizer
        assert generation is not None, "models with a vocabulary head have generation settings"
        self.end_tokens = end_token_ids(generation, tokenizer, self.vocab_size)
        self._banned = banned_tokens(
            model.config, generation, tokenizer, self.end_tokens, self.vocab_size
        ).to(model.device)
        # nothing trains the logit of a banned token, so `generate` must not sample it either
        generation.suppress_tokens = self._banned.nonzero()[:, 0].tolist() or None
        generation.eos_token_id = sorted(self.end_tokens)
        check_exact(self.backbone, (~self._banned).nonzero()[:, 0])

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        trust_remote_code: bool = False,
    ) -> "Policy":
        """From a Hugging Face folder or hub name."""
        source = find_model(path)
        model = load_model(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        renderer = Renderer.load(
            find_tokenizer(source), model.config, trust_remote_code=trust_remote_code
        )
        return cls(model, renderer)

    def sharing(self, adapters: Adapters, name: str | None) -> "Policy":
        """Another policy on the same resident model: with an adapter, or as the base itself."""
        policy = copy(self)
        policy._adapters, policy._adapter = adapters, name
        return policy

    @contextmanager
    def active(self) -> Iterator[None]:
        """Here `model` is this policy; afterwards it is again whatever it was before."""
        if self._adapters is None:
            yield
            return
        with self._adapters.using(self._adapter):
            yield

    @property
    def owns_model(self) -> bool:
        """Whether all its weights are its own; else only its adapter is."""
        return self._adapters is None

    def parameters(self) -> dict[str, nn.Parameter]:
        """What is its own and may be trained, by name; tied weights are one parameter."""
        if self._adapters is None:
            return dict(self.model.named_parameters())
        return self._adapters.parameters(self._adapter)

    def fit(self, weights: Mapping[str, Tensor]) -> None:
        """Gives an adapter the ranks of weights it is to take over: `parameters` are then new."""
        if self._adapters is not None and self._adapter is not None:
            self._adapters.fit(self._adapter, weights)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def set_vision_trainable(self, trainable: bool) -> None:
        """Freezes or frees the vision tower, where there is one; a shared model's stays frozen."""
        if self.backbone.vision is not None and self.owns_model:
            self.backbone.vision.tower.requires_grad_(trainable)

    def checkpoint(self) -> None:
        """Backward passes compute layers again instead of keeping everything: less memory."""
        adapters = self._adapters

        def again() -> AbstractContextManager[None]:
            return nullcontext() if adapters is None else adapters.using(adapters.active)

        self.backbone.checkpoint(again)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.renderer.tokenizer

    @property
    def modalities(self) -> frozenset[str]:
        """Which of `text`, `image` and `video` the model can read."""
        return self.renderer.modalities

    @property
    def head(self) -> Float[Tensor, "V D"]:
        """The vocabulary head: `hidden @ head.T` are the logits."""
        return self.backbone.head

    @property
    def vocab_size(self) -> int:
        """Rows of the head, those no token uses included."""
        return self.head.shape[0]

    @property
    def banned(self) -> Bool[Tensor, "V"]:
        """Tokens of log-probability -inf, in sampling and in every score."""
        return self._banned.to(self.model.device)

    def render(self, messages: Sequence[Message]) -> Prompt:
        """Messages through the model's own template, up to where the assistant begins to speak."""
        return self.renderer.render(messages)

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[Prompt]:
        """Many at once, as `render` would one by one."""
        return self.renderer.render_all(conversations)

    def read(self, prompts: Sequence[Prompt]) -> SharedPrefix:
        """The prompts, once: what completions are sampled and scored after.

        With their graph when gradients are enabled.
        """
        with self.active():
            return read_prompts(self.backbone, prompts)

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        max_tokens: int,
        temperature: float,
        generator: torch.Generator,
    ) -> list[list[Completion]]:
        """G completions for each of P prompts, all randomness from `generator`.

        Temperature 0 takes the most probable token; its log-probabilities are then reported at
        temperature 1.
        """
        if not prompts:
            return []
        with torch.no_grad():
            prefix = self.read(prompts)
        draw = Draw(prefix, group_size, temperature, generator)
        return self.sample_together([draw], max_tokens=max_tokens)[0]

    def sample_together(
        self, draws: Sequence[Draw], *, max_tokens: int
    ) -> list[list[list[Completion]]]:
        """Several batches in one loop: for each draw its groups of completions."""
        for draw in draws:
            if draw.group_size < 1 or max_tokens < 1 or draw.temperature < 0:
                raise ValueError(
                    "sampling needs group_size and max_tokens of at least 1 and a temperature of "
                    f"at least 0: got {draw.group_size}, {max_tokens} and {draw.temperature}. "
                    "Correct the settings."
                )
        with self.active():
            sampled = sample_tokens(
                self.backbone,
                draws,
                max_tokens=max_tokens,
                banned=self.banned,
                ends=self.end_tokens,
            )
        return [
            self.grouped(samples, draw.group_size)
            for samples, draw in zip(sampled, draws, strict=True)
        ]

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Sequence[NDArray[np.int32]]],
    ) -> PackedStates:
        """The states that predict each token of `completions[p]` after `prompts[p]`.

        With their graph when gradients are enabled; log-probabilities follow by
        `functional.logprobs.token_logprobs(hidden, policy.head, token_ids, banned=policy.banned)`.
        """
        return self.score_after(self.read(prompts), completions)

    def score_after(
        self, prefix: SharedPrefix, completions: Sequence[Sequence[NDArray[np.int32]]]
    ) -> PackedStates:
        """The same after prompts that have been read with the weights as they are now."""
        if len(prefix.last_states) != len(completions):
            raise ValueError(
                f"every prompt needs its completions: got {len(prefix.last_states)} prompts and "
                f"{len(completions)} groups. Pass one group per prompt."
            )
        shortest = min((len(ids) for group in completions for ids in group), default=0)
        if shortest == 0:
            raise ValueError(
                "scoring needs at least one completion and no empty ones: got "
                f"{[[len(ids) for ids in group] for group in completions]} tokens. "
                "Leave out prompts and completions without tokens."
            )
        with self.active():
            return read_completions(self.backbone, prefix, completions)

    def save(self, path: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """An ordinary Hugging Face folder: safetensors, tokenizer, template, processor settings.

        An adapter is merged into the weights that are written. A `state` is written in the place of
        the model's own.
        """
        if self._adapters is not None:
            assert state is None, "an adapter is merged into the model's own state"
            state = self.state()
        with quiet():
            self.model.save_pretrained(path, state_dict=state)
        self.renderer.save(path)

    def save_settings(self, path: str | Path) -> None:
        """Such a folder without its weights."""
        self.model.config.architectures = [type(self.model).__name__]
        generation = self.model.generation_config
        assert generation is not None, "checked when built"
        self.model.config.save_pretrained(path)
        generation.save_pretrained(path)
        self.renderer.save(path)

    def state(self) -> dict[str, Tensor]:
        """All weights of the plain model by name, an adapter's change in them."""
        if self._adapters is None:
            return self.model.state_dict()
        return self._adapters.merged(self._adapter)

    def save_adapter(self, path: str | Path, *, rank: int | None = None) -> None:
        """The adapter as PEFT saves one, with the tokenizer; `rank` bounds its rank."""
        assert self._adapters is not None and self._adapter is not None, "a policy with an adapter"
        self._adapters.save(self._adapter, Path(path), rank=rank)
        self.renderer.save(path)

    def grouped(self, samples: Samples, group_size: int) -> list[list[Completion]]:
        """What was drawn, as completions: a group after another."""
        completions = [self._completion(samples, row) for row in range(len(samples.lengths))]
        return [
            completions[first : first + group_size]
            for first in range(0, len(completions), group_size)
        ]

    def _completion(self, samples: Samples, row: int) -> Completion:
        token_ids = samples.token_ids[row, : samples.lengths[row]]
        is_truncated = int(token_ids[-1]) not in self.end_tokens
        spoken = token_ids if is_truncated else token_ids[:-1]
        text = self.tokenizer.decode(spoken.tolist(), skip_special_tokens=True)
        assert isinstance(text, str)
        return Completion(
            token_ids, samples.logprobs[row, : samples.lengths[row]], text, is_truncated
        )
