"""The transformer under a policy, run over one unpadded row of tokens.

The only caller of a transformers model. Knows no tokenizer and no sampling.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from copd.policy.readers.attention import RowAttention, install
from copd.policy.rendering.processors import MODEL_TYPES
from copd.policy.rendering.render import Prompt
from copd.policy.rendering.vision import Vision

_SIZES = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
_MOST_LAYOUTS = 256


@dataclass(frozen=True, eq=False)
class Backbone:
    """A causal model whose text layers attend as each pass tells them."""

    model: PreTrainedModel
    checkpointed: list[GradientCheckpointingLayer] = field(default_factory=list)
    """Layers that a backward pass runs a second time instead of keeping what they computed."""
    known: dict[tuple[bytes | None, ...], Tensor] = field(default_factory=dict, init=False)
    """Positions of prompts with visual tokens by their layout: building them costs a quarter
    of reading a small picture, and a data set has few layouts."""

    def __post_init__(self) -> None:
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            raise ValueError(
                "a policy needs a vocabulary head that is one matrix without bias: got "
                f"{head} in {type(self.model).__name__}. Choose a model like Qwen3 or Llama."
            )
        install(self.model)

    @cached_property
    def vision(self) -> Vision | None:
        """The vision tower of a model that sees."""
        config = self.model.config
        if config.model_type not in MODEL_TYPES:
            return None
        return Vision(
            self.model.base_model.get_submodule("visual"),
            image_token=config.image_token_id,
            video_token=config.video_token_id,
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def head(self) -> Float[Tensor, "V D"]:
        """The vocabulary head: `hidden @ head.T` are the logits."""
        head = self.model.get_output_embeddings()
        assert head is not None, "checked when built"
        return head.weight

    @property
    def body(self) -> Any:
        """What makes last states of embeddings: text layers, without a head and without a tower."""
        body: Any = self.model.base_model
        return body if self.vision is None else body.language_model

    @property
    def num_heads(self) -> int:
        """Query heads of a text layer."""
        return self.model.config.get_text_config().num_attention_heads

    @property
    def num_axes(self) -> int:
        """Axes of a rotary position: 3 (time, height, width) for a Qwen-VL, else 1."""
        return 1 if self.vision is None else 3

    def on_axes(self, positions: Int[Tensor, "N"]) -> Int[Tensor, "A N"]:
        """Positions of plain text: the same on every axis."""
        return positions.expand(self.num_axes, -1)

    def positions(self, prompt: Prompt) -> Int[Tensor, "A L"]:
        """The prompt's rotary positions; what is written after it goes on from the last one + 1.

        Not from the largest: the times of a long clip of Qwen2.5-VL outrun the text after it.

        Always given explicitly: left alone, transformers counts padding in a text batch and reuses
        the offset of the last batch with pictures.
        """
        media = prompt.media
        if not media:
            return self.on_axes(torch.arange(len(prompt.input_ids)))
        kinds = media["mm_token_type_ids"]  # all that is read of the tokens
        sizes = {name: media.get(name) for name in _SIZES}
        layout = tuple(
            None if part is None else part.numpy().tobytes() for part in (kinds, *sizes.values())
        )
        if layout not in self.known:
            body: Any = self.model.base_model
            positions, _ = body.get_rope_index(
                prompt.input_ids[None], mm_token_type_ids=kinds[None], **sizes
            )
            if len(self.known) == _MOST_LAYOUTS:
                self.known.clear()
            self.known[layout] = positions[:, 0]
        return self.known[layout]

    def features(self, prompts: Sequence[Prompt]) -> Float[Tensor, "F n D"] | None:
        """What the visual tokens of these prompts carry, where there are any."""
        with self._checkpointing():
            return None if self.vision is None else self.vision.features(prompts)

    def checkpoint(self, again: Callable[[], AbstractContextManager[Any]]) -> None:
        """From now on passes with a gradient keep the inputs of layers only.

        `again` is called in the first pass and gives the context for the second. Never reentrant:
        kept keys leave a layer by the side, and their gradient would be lost without a sound.
        """
        model: Any = self.model
        older = model.gradient_checkpointing_enable  # the name before transformers 5.22
        enable = getattr(model, "activation_checkpointing_enable", older)
        enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), again())})
        layers = (m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer))
        self.checkpointed[:] = layers

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """transformers checkpoints layers in training mode; what is inside them stays in eval mode,
        so that nothing drops out."""
        layers = self.checkpointed if torch.is_grad_enabled() else []
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    def forward(
        self,
        token_ids: Int[Tensor, "N"],
        positions: Int[Tensor, "A N"],
        attention: RowAttention,
        features: Float[Tensor, "F n D"] | None = None,
    ) -> Float[Tensor, "N D"]:
        """The last hidden states of one row, every text layer attending through `attention`."""
        self._check_mode()
        layers: list[int] = []

        def counted(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            layers.append(layer)
            return attention(layer, query, key, value, scale)

        device = self.device
        token_ids, positions = token_ids.to(device), positions.to(device)
        embeddings = self.body.get_input_embeddings()(token_ids)
        positions = positions if self.vision is None else positions[:, None]
        deepstack: dict[str, Any] = {}
        if features is not None:
            assert self.vision is not None, "pixels need a tower"
            is_visual = self.vision.is_visual(token_ids)
            embeddings = embeddings.masked_scatter(
                is_visual[:, None], features[0].to(embeddings.dtype)
            )
            if len(features) > 1:
                deepstack["visual_pos_masks"] = is_visual[None]
                deepstack["deepstack_visual_embeds"] = list(features[1:])
        with self._checkpointing():
            output = self.body(
                inputs_embeds=embeddings[None],
                position_ids=positions,
                attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
                use_cache=False,
                row_attention=counted,
                **deepstack,
            )
        self._check_layers(layers)
        return output.last_hidden_state[0]

    def _check_mode(self) -> None:
        """In training mode there may be dropout, and checkpointing may lose kept keys' gradient.

        In eval mode transformers checkpoints nothing, whatever is enabled; `checkpoint` does.
        """
        if self.model.training:
            raise ValueError(
                f"packed passes need a model in eval mode: got {type(self.model).__name__} in "
                "training mode, with its dropout and checkpointing. Call model.eval(); gradients "
                "do not depend on it."
            )

    def _check_layers(self, layers: list[int]) -> None:
        """A layer that ignored `row_attention` would give wrong numbers without a sound."""
        num_layers = self.model.config.get_text_config().num_hidden_layers
        if sorted(layers) != list(range(num_layers)):
            raise ValueError(
                f"packed passes need every text layer of {type(self.model).__name__} to attend "
                f"through copd: got layers {sorted(layers)}, expected 0 to {num_layers - 1} once "
                "each. Choose a model of plain attention layers, and leave its attention "
                "implementation as Policy set it."
            )
