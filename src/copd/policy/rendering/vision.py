"""Pixels to what the text layers take in their place. Knows no attention and no completions."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from copd.policy.rendering.render import Prompt

_PIXELS = ("pixel_values", "pixel_values_videos")
_GRIDS = ("image_grid_thw", "video_grid_thw")


class Vision:
    """The vision tower of a Qwen-VL model, all pictures and clips of many prompts in one pass."""

    def __init__(self, tower: nn.Module, *, image_token: int, video_token: int) -> None:
        self.tower = tower
        self.image_token = image_token
        self.video_token = video_token
        self._digest = (-1, "")  # of the weights, and when it was taken

    def is_visual(self, token_ids: Int[Tensor, "N"]) -> Bool[Tensor, "N"]:
        """Where a token stands for pixels."""
        return (token_ids == self.image_token) | (token_ids == self.video_token)

    def features(self, prompts: Sequence[Prompt]) -> Float[Tensor, "F n D"] | None:
        """What the n visual tokens of all prompts carry: embeddings first, then deepstack's levels.

        A tower that is frozen sees each prompt once: its features stay with the prompt, for every
        policy whose tower has the same weights. On a CPU it sees each alone, so that not one bit
        depends on which others a run, or a resumed one, had not seen yet.
        """
        seeing = [prompt for prompt in prompts if prompt.media]
        if not seeing:
            return None
        if any(parameter.requires_grad for parameter in self.tower.parameters()):
            return self._encode(seeing)
        tower = self._fingerprint()
        fresh = [prompt for prompt in seeing if tower not in prompt.features]
        device = next(self.tower.parameters()).device
        for batch in [[prompt] for prompt in fresh] if device.type == "cpu" else [fresh]:
            counts = [int(self.is_visual(prompt.input_ids).sum()) for prompt in batch]
            parts = self._encode(batch).cpu().split(counts, dim=1) if batch else ()
            for prompt, part in zip(batch, parts, strict=True):
                prompt.features[tower] = part.clone()
        return torch.cat([prompt.features[tower] for prompt in seeing], dim=1).to(device)

    def _encode(self, prompts: Sequence[Prompt]) -> Float[Tensor, "F n D"]:
        """One pass of the tower; pictures come before clips in it, so tokens are sorted back."""
        tower: Any = self.tower
        parameter = next(self.tower.parameters())
        pixels, grids = (
            torch.cat([p.media[n] for n in names for p in prompts if n in p.media])
            for names in (_PIXELS, _GRIDS)
        )
        seen = tower(
            pixels.to(parameter.device, parameter.dtype), grid_thw=grids.to(parameter.device)
        )
        deepstack = getattr(seen, "deepstack_features", ())  # Qwen2.5-VL has none
        features = torch.stack([seen.pooler_output, *deepstack])
        tokens = torch.cat([prompt.input_ids for prompt in prompts])
        is_clip = tokens[self.is_visual(tokens)] == self.video_token
        if not is_clip.any() or is_clip.all():
            return features
        place = torch.argsort(torch.argsort(is_clip.int(), stable=True))
        return features[:, place.to(parameter.device)]

    def _fingerprint(self) -> str:
        """Equal for equal weights and equal precision of the pass."""
        parameters = list(self.tower.parameters())
        age = sum(parameter._version for parameter in parameters)  # grows with every change
        if self._digest[0] != age:
            digest = hashlib.blake2b(digest_size=16)
            for parameter in parameters:
                weights = parameter.detach().cpu().contiguous().view(torch.uint8).numpy()
                digest.update(weights.tobytes())
            self._digest = (age, digest.hexdigest())
        kind = parameters[0].device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return f"{self._digest[1]} {precision}"
