"""The transformer of a policy, run over one unpadded row of tokens."""

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

from copd.policy.attention import RowAttention, install
from copd.policy.rendering.processors import MODEL_TYPES
from copd.policy.rendering.render import Prompt
from copd.policy.rendering.vision import Vision

_SIZES = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
_MAX_LAYOUTS = 256


@dataclass(frozen=True, eq=False)
class Backbone:
    """A causal model whose text layers attend in the way that each pass chooses."""

    model: PreTrainedModel
    checkpointed: list[GradientCheckpointingLayer] = field(default_factory=list)
    """Layers that a backward pass runs again, instead of storing their activations."""
    layouts: dict[tuple[bytes | None, ...], Tensor] = field(default_factory=dict, init=False)
    """Cache of the positions of prompts with visual tokens. Building them costs a quarter of a pass
    over a small image, and a data set has few layouts."""

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
        """The vision tower, or None for a text model."""
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
        """The text layers, from embeddings to last states."""
        body: Any = self.model.base_model
        return body if self.vision is None else body.language_model

    @property
    def num_heads(self) -> int:
        """Number of query heads of a text layer."""
        return self.model.config.get_text_config().num_attention_heads

    def on_axes(self, positions: Int[Tensor, "N"]) -> Int[Tensor, "A N"]:
        """Expand positions of text to time, height and width for a Qwen-VL, else to one axis."""
        return positions.expand(1 if self.vision is None else 3, -1)

    def positions(self, prompt: Prompt) -> Int[Tensor, "A L"]:
        """Return the rotary positions of a prompt.

        They are always passed to the model: by itself, transformers counts padding in a text batch
        and reuses the offset of the last batch with images.
        """
        media = prompt.media
        if not media:
            return self.on_axes(torch.arange(len(prompt.input_ids)))
        kinds = media["mm_token_type_ids"]  # all that positions depend on of the tokens
        sizes = {name: media.get(name) for name in _SIZES}
        layout = tuple(
            None if size is None else size.numpy().tobytes() for size in (kinds, *sizes.values())
        )
        if layout not in self.layouts:
            body: Any = self.model.base_model
            positions, _ = body.get_rope_index(
                prompt.input_ids[None], mm_token_type_ids=kinds[None], **sizes
            )
            if len(self.layouts) == _MAX_LAYOUTS:
                self.layouts.clear()
            self.layouts[layout] = positions[:, 0]
        return self.layouts[layout]

    def features(self, prompts: Sequence[Prompt]) -> Float[Tensor, "F n D"] | None:
        """Return the features of the prompts' visual tokens, or None where there are none."""
        with self._checkpointing():
            return None if self.vision is None else self.vision.features(prompts)

    def enable_gradient_checkpointing(
        self, context: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        """Store only the inputs of layers in passes with a gradient, and run layers again.

        `context` is called in the first pass and returns the context of the second. Checkpointing
        is not reentrant: the keys that a pass stores are no outputs of a layer, so a reentrant
        backward pass would silently lose their gradient.
        """
        model: Any = self.model
        older = model.gradient_checkpointing_enable  # the name before transformers 5.22
        enable = getattr(model, "activation_checkpointing_enable", older)
        enable({"use_reentrant": False, "context_fn": lambda: (nullcontext(), context())})
        layers = (m for m in self.model.modules() if isinstance(m, GradientCheckpointingLayer))
        self.checkpointed[:] = layers

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Put checkpointed layers in training mode, without their submodules: no dropout."""
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
        """Return the last hidden states of one row, whose layers attend by `attention`."""
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
            assert self.vision is not None, "features come from a tower"
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
        """Refuse training mode: dropout, and checkpointing that may lose the keys' gradient."""
        if self.model.training:
            raise ValueError(
                f"packed passes need a model in eval mode: got {type(self.model).__name__} in "
                "training mode, with its dropout and checkpointing. Call model.eval(); gradients "
                "do not depend on it."
            )

    def _check_layers(self, layers: list[int]) -> None:
        """Check that every layer used `row_attention`, or numbers would be wrong silently."""
        num_layers = self.model.config.get_text_config().num_hidden_layers
        if sorted(layers) != list(range(num_layers)):
            raise ValueError(
                f"packed passes need every text layer of {type(self.model).__name__} to attend "
                f"through copd: got layers {sorted(layers)}, expected 0 to {num_layers - 1} once "
                "each. Choose a model of plain attention layers, and leave its attention "
                "implementation as Policy set it."
            )
