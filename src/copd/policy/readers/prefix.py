"""What a model has computed for prompts and completions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False)
class SharedPrefix:
    """P prompts that a model has read, with what their completions attend to and continue from.

    The tensors carry a graph if the prompts were read with gradients enabled.
    """

    keys: dict[int, Float[Tensor, "P Hk L d"]]
    """Keys by layer, prompts right-padded."""
    values: dict[int, Float[Tensor, "P Hk L d"]]
    """Values by layer, likewise."""
    padding: Bool[Tensor, "P L"] | None
    """True where there is no token; None if all prompts are equally long."""
    last_states: Float[Tensor, "P D"]
    """The state that predicts the first token of each prompt's completions."""
    next_positions: Int[Tensor, "P"]
    """The rotary position of that token."""

    @classmethod
    def join(cls, prefixes: Sequence["SharedPrefix"]) -> "SharedPrefix":
        """Join several prefixes.

        Args:
            prefixes: At least one, all of one model.

        Returns:
            A prefix of all their prompts, padded to the longest.
        """
        if len(prefixes) == 1:
            return prefixes[0]
        width = max(prefix.is_padding.shape[1] for prefix in prefixes)
        wide = [prefix._widen(width) for prefix in prefixes]
        is_padded = any(prefix.padding is not None for prefix in wide)
        return cls(
            {layer: torch.cat([prefix.keys[layer] for prefix in wide]) for layer in wide[0].keys},
            {layer: torch.cat([prefix.values[layer] for prefix in wide]) for layer in wide[0].keys},
            torch.cat([prefix.is_padding for prefix in wide]) if is_padded else None,
            torch.cat([prefix.last_states for prefix in prefixes]),
            torch.cat([prefix.next_positions for prefix in prefixes]),
        )

    def _widen(self, width: int) -> "SharedPrefix":
        room = width - self.is_padding.shape[1]
        if room == 0:
            return self
        return SharedPrefix(
            {layer: pad(keys, (0, 0, 0, room)) for layer, keys in self.keys.items()},
            {layer: pad(values, (0, 0, 0, room)) for layer, values in self.values.items()},
            pad(self.is_padding, (0, room), value=True),
            self.last_states,
            self.next_positions,
        )

    @property
    def is_padding(self) -> Bool[Tensor, "P L"]:
        """The padding as a mask, also where there is none."""
        if self.padding is not None:
            return self.padding
        num_prompts, _, width, _ = next(iter(self.keys.values())).shape
        return torch.zeros(num_prompts, width, dtype=torch.bool, device=self.last_states.device)

    def cut(self) -> "SharedPrefix":
        """Cut the prefix from its graph.

        Returns:
            A copy whose tensors are leaves, which collect the gradient of several passes.
        """

        def leaves(tensors: dict[int, Tensor]) -> dict[int, Tensor]:
            return {layer: tensor.detach().requires_grad_() for layer, tensor in tensors.items()}

        return SharedPrefix(
            leaves(self.keys),
            leaves(self.values),
            self.padding,
            self.last_states.detach().requires_grad_(),
            self.next_positions,
        )

    def backward(self, leaves: "SharedPrefix") -> None:
        """Carry gradients on into the model.

        Args:
            leaves: A `cut` of this prefix, with the gradients that it has collected.
        """
        pairs = [
            (tensor, leaf.grad)
            for tensor, leaf in zip(self._tensors(), leaves._tensors(), strict=True)
            if tensor.requires_grad and leaf.grad is not None
        ]
        torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])

    def _tensors(self) -> list[Tensor]:
        return [*self.keys.values(), *self.values.values(), self.last_states]

    def select(self, prompts: Int[Tensor, "Q"] | slice) -> "SharedPrefix":
        """Select some of the prompts.

        Args:
            prompts: Their numbers, shape `Q`, or a slice.

        Returns:
            A prefix of these prompts, with the padding of all.
        """
        return SharedPrefix(
            {layer: keys[prompts] for layer, keys in self.keys.items()},
            {layer: values[prompts] for layer, values in self.values.items()},
            None if self.padding is None else self.padding[prompts],
            self.last_states[prompts],
            self.next_positions[prompts],
        )


@dataclass(frozen=True, eq=False)
class PackedStates:
    """The states that predict N completion tokens, prompt by prompt, completion by completion."""

    hidden: Float[Tensor, "N D"]
    """Last hidden states; `hidden @ head.T` are the logits of `token_ids`."""
    token_ids: Int[Tensor, "N"]
    """The predicted tokens."""
    lengths: Int[Tensor, "B"]
    """The number of tokens of each completion; they add up to N."""
