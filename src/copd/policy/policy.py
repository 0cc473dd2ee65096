"""A model with its tokenizer, from which completions are sampled, scored and trained."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from copd.policy.adapters import Adapters
from copd.policy.backbone import Backbone
from copd.policy.loading import load_model
from copd.policy.readers.packed import check_exact, read_completions, read_prompts
from copd.policy.readers.prefix import PackedStates, SharedPrefix
from copd.policy.rendering.render import Prompt, Renderer
from copd.policy.sampling.sampler import Draw, sample_tokens, to_completions
from copd.policy.sources import find_model, find_tokenizer, no_progress_bars
from copd.policy.tokens import restrict_tokens
from copd.types import Completion, Completions, Message


class Policy:
    """A transformers model in eval mode that reads each prompt of a group once.

    `read` and `score` return tensors with a graph if gradients are enabled, so that a caller can
    train the `parameters` by a loss on them.

    Example:
        >>> policy = Policy.load("Qwen/Qwen3-0.6B")
        >>> prompt = policy.render([Message("user", (Text("Compute 9-2+6-4."),))])
        >>> [group] = policy.sample(
        ...     [prompt], group_size=8, max_tokens=40, temperature=1.0, generator=Generator()
        ... )
        >>> token_ids = np.concatenate([completion.token_ids for completion in group])
        >>> lengths = np.array([len(completion.token_ids) for completion in group])
        >>> states = policy.score([prompt], token_ids, lengths)
        >>> logprobs, entropy = token_logprobs(
        ...     states.hidden, policy.head, states.token_ids, banned=policy.banned
        ... )
    """

    def __init__(self, model: PreTrainedModel, renderer: Renderer) -> None:
        self.model = model.eval()
        self.renderer = renderer
        self.tokenizer = renderer.tokenizer
        self.modalities = renderer.modalities
        self._adapters: Adapters | None = None
        self._adapter: str | None = None
        self.backbone = Backbone(model)
        self.end_tokens, self._banned = restrict_tokens(model, self.tokenizer, self.vocab_size)
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
        """Load a policy.

        Args:
            path: A Hugging Face folder, a GGUF file, an adapter folder of PEFT, or a hub name.
            dtype: Type of the weights: "float32", "bfloat16" or "float16".
            device: Device of the weights, as torch names it.
            trust_remote_code: Whether code that comes with the model may run.

        Returns:
            The policy, with an adapter merged into its weights.
        """
        source = find_model(path)
        model = load_model(source, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        renderer = Renderer.load(
            find_tokenizer(source), model.config, trust_remote_code=trust_remote_code
        )
        return cls(model, renderer)

    def with_adapter(self, adapters: Adapters, name: str | None) -> "Policy":
        """Return a policy on the same resident model.

        Args:
            adapters: The adapters of that model.
            name: The adapter that the policy uses; None for the base.

        Returns:
            A policy that shares everything but the adapter.
        """
        policy = copy(self)
        policy._adapters, policy._adapter = adapters, name
        return policy

    def active(self) -> AbstractContextManager[None]:
        """Return a context in which `model` computes with the policy's adapter."""
        return nullcontext() if self._adapters is None else self._adapters.using(self._adapter)

    @property
    def owns_model(self) -> bool:
        """Whether all weights are the policy's own, and not only its adapter."""
        return self._adapters is None

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the policy's own parameters by name; tied weights are one parameter."""
        if self._adapters is None:
            return dict(self.model.named_parameters())
        return self._adapters.parameters(self._adapter)

    def resize_adapter(self, weights: Mapping[str, Tensor]) -> None:
        """Prepare the adapter, if there is one, for weights of other ranks.

        Args:
            weights: Weights by the names of `parameters`, which are new where ranks change.
        """
        if self._adapters is not None and self._adapter is not None:
            self._adapters.resize(self._adapter, weights)

    @property
    def device(self) -> torch.device:
        return self.model.device

    def set_vision_trainable(self, trainable: bool) -> None:
        """Freeze or unfreeze the vision tower, if there is one and the model is not shared.

        Args:
            trainable: Whether its parameters require gradients.
        """
        if self.backbone.vision is not None and self.owns_model:
            self.backbone.vision.tower.requires_grad_(trainable)

    def enable_gradient_checkpointing(self) -> None:
        """Compute the activations of layers again in backward passes, to save memory."""
        adapters = self._adapters
        self.backbone.enable_gradient_checkpointing(
            nullcontext if adapters is None else lambda: adapters.using(adapters.active)
        )

    @property
    def head(self) -> Float[Tensor, "V D"]:
        """The vocabulary head: `hidden @ head.T` are the logits."""
        return self.backbone.head

    @property
    def vocab_size(self) -> int:
        """Rows of the head, including those that no token uses."""
        return self.head.shape[0]

    @property
    def banned(self) -> Bool[Tensor, "V"]:
        """The tokens whose log-probability is -inf, in sampling and in every score."""
        return self._banned.to(self.model.device)

    def render(self, messages: Sequence[Message]) -> Prompt:
        """Apply the model's chat template.

        Args:
            messages: One conversation.

        Returns:
            Its token ids and pixels, up to where the assistant's turn begins.
        """
        return self.renderer.render(messages)

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[Prompt]:
        """Render many conversations, with the same bits as one by one but at less cost.

        Args:
            conversations: The messages of each.

        Returns:
            A prompt for each.
        """
        return self.renderer.render_all(conversations)

    def read(self, prompts: Sequence[Prompt]) -> SharedPrefix:
        """Read prompts in one pass.

        Args:
            prompts: P prompts, at least one.

        Returns:
            What `Draw` and `score` need to sample and score completions of them.
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
        """Sample a group of completions for each prompt.

        Args:
            prompts: P prompts.
            group_size: Completions per prompt.
            max_tokens: Limit of a completion, in tokens.
            temperature: 0 takes the most probable token, and its log-probability at 1.
            generator: The only source of randomness.

        Returns:
            P groups of completions.

        Raises:
            ValueError: If a setting is out of range.
            FloatingPointError: If the model's logits are not finite.
        """
        if not prompts:
            return []
        with torch.no_grad():
            prefix = self.read(prompts)
        draw = Draw(prefix, group_size, temperature, generator)
        [completions] = self.sample_together([draw], max_tokens=max_tokens)
        return completions.groups(group_size)

    def sample_together(self, draws: Sequence[Draw], *, max_tokens: int) -> list[Completions]:
        """Sample several batches in one decode loop, like `sample`.

        Args:
            draws: The batches, at least one.
            max_tokens: Limit of a completion, in tokens.

        Returns:
            The completions of each batch.
        """
        with self.active():
            sampled = sample_tokens(
                self.backbone,
                draws,
                max_tokens=max_tokens,
                banned=self.banned,
                ends=self.end_tokens,
            )
        return [to_completions(one, self.tokenizer, self.end_tokens) for one in sampled]

    def score(
        self,
        prompts: Sequence[Prompt] | SharedPrefix,
        token_ids: NDArray[np.int32],
        lengths: NDArray[np.int32],
        group_sizes: Sequence[int] | None = None,
    ) -> PackedStates:
        """Compute the states that predict the tokens of completions.

        Args:
            prompts: P prompts, or what `read` has returned for them with the present weights.
            token_ids: Completions one after another, ordered by prompt, shape `N`.
            lengths: Tokens of each completion, shape `B`.
            group_sizes: Completions of each prompt; equally many by default.

        Returns:
            The states, from which log-probabilities follow as in the class's example.

        Raises:
            ValueError: If the numbers of prompts and groups differ, or a completion is empty.
        """
        prefix = prompts if isinstance(prompts, SharedPrefix) else self.read(prompts)
        with self.active():
            return read_completions(self.backbone, prefix, token_ids, lengths, group_sizes)

    def save(self, path: str | Path, state: dict[str, Tensor] | None = None) -> None:
        """Save a Hugging Face folder, with an adapter merged into the weights.

        Args:
            path: The folder.
            state: A state dict to save instead of the model's own.
        """
        if self._adapters is not None:
            assert state is None, "an adapter is merged into the model's own state"
            state = self.state_dict()
        with no_progress_bars():
            self.model.save_pretrained(path, state_dict=state)
        self.renderer.save(path)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all weights of the plain model by name, with the adapter's change in them."""
        if self._adapters is None:
            return self.model.state_dict()
        return self._adapters.merged(self._adapter)

    def save_adapter(self, path: str | Path, *, rank: int | None = None) -> None:
        """Save the adapter as PEFT does, with the tokenizer.

        Args:
            path: The folder.
            rank: Save the nearest change of at most this rank.
        """
        assert self._adapters is not None and self._adapter is not None, "a policy with an adapter"
        self._adapters.save(self._adapter, Path(path), rank=rank)
        self.renderer.save(path)
