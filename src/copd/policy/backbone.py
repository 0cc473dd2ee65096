"""The transformer under a policy, run over one unpadded row of tokens.

The only caller of a transformers model. Knows no tokenizer and no sampling.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from copd.policy.attention import RowAttention, install
from copd.policy.media import MODEL_TYPES
from copd.policy.render import Prompt


@dataclass(frozen=True, eq=False)
class Backbone:
    """A causal model whose text layers attend as each pass tells them."""

    model: PreTrainedModel

    def __post_init__(self) -> None:
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            raise ValueError(
                "a policy needs a vocabulary head that is one matrix without bias: got "
                f"{head} in {type(self.model).__name__}. Choose a model like Qwen3 or Llama."
            )
        install(self.model)

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
    def num_axes(self) -> int:
        """Axes of a rotary position: 3 (time, height, width) for Qwen3-VL, else 1."""
        return 3 if self.model.config.model_type in MODEL_TYPES else 1

    def on_axes(self, positions: Int[Tensor, "N"]) -> Int[Tensor, "A N"]:
        """Positions of plain text: the same on every axis."""
        return positions.expand(self.num_axes, -1)

    def positions(self, prompt: Prompt) -> Int[Tensor, "A L"]:
        """The prompt's rotary positions; text after it goes on from their maximum + 1.

        Always given explicitly: left alone, transformers counts padding in a text batch and reuses
        the offset of the last batch with pictures.
        """
        if self.num_axes == 1:
            return self.on_axes(torch.arange(len(prompt.input_ids)))
        media = prompt.media
        kinds = media.get("mm_token_type_ids", torch.zeros_like(prompt.input_ids))
        body: Any = self.model.base_model
        positions, _ = body.get_rope_index(
            prompt.input_ids[None],
            mm_token_type_ids=kinds[None],
            image_grid_thw=media.get("image_grid_thw"),
            video_grid_thw=media.get("video_grid_thw"),
        )
        return positions[:, 0]

    def forward(
        self,
        token_ids: Int[Tensor, "N"],
        positions: Int[Tensor, "A N"],
        attention: RowAttention,
        media: Mapping[str, Tensor],
    ) -> Float[Tensor, "N D"]:
        """The last hidden states of one row, every text layer attending through `attention`."""
        self._check_mode()
        layers: list[int] = []

        def counted(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            layers.append(layer)
            return attention(layer, query, key, value, scale)

        device = self.device
        positions = positions.to(device)
        output = self.model.base_model(
            input_ids=token_ids.to(device)[None],
            position_ids=positions if self.num_axes == 1 else positions[:, None],
            attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device),
            use_cache=False,
            row_attention=counted,
            **{name: tensor.to(device) for name, tensor in media.items()},
        )
        self._check_layers(layers)
        return output.last_hidden_state[0]

    def _check_mode(self) -> None:
        """In training mode there may be dropout, and checkpointing would lose kept keys' gradient.

        In eval mode transformers checkpoints nothing, whatever is enabled.
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
