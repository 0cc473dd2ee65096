"""The vision tower of a Qwen-VL model: from the pixels of prompts to features of visual tokens."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from copd.policy.rendering.pixels import MEDIA_FIELDS
from copd.policy.rendering.render import Prompt


class Vision:
    """A vision tower that encodes all images and videos of many prompts in one pass."""

    def __init__(self, tower: nn.Module, *, image_token: int, video_token: int) -> None:
        self.tower = tower
        self.image_token = image_token
        self.video_token = video_token
        self._digest = (-1, "")  # the version of the weights, and their hash

    def is_visual(self, token_ids: Int[Tensor, "N"]) -> Bool[Tensor, "N"]:
        """Mark the tokens that stand for pixels."""
        return (token_ids == self.image_token) | (token_ids == self.video_token)

    def features(self, prompts: Sequence[Prompt]) -> Float[Tensor, "F n D"] | None:
        """Return the embeddings of the n visual tokens of all prompts, then the deepstack levels.

        A frozen tower encodes each prompt once. The features stay with the prompt, for every policy
        whose tower has the same weights. On a CPU each prompt is encoded alone, so that its bits
        do not depend on which other prompts a run, or a resumed run, has encoded before.
        """
        visual = [prompt for prompt in prompts if prompt.media]
        if not visual:
            return None
        if any(parameter.requires_grad for parameter in self.tower.parameters()):
            return self._encode(visual)
        tower = self._fingerprint()
        missing = [prompt for prompt in visual if tower not in prompt.features]
        device = next(self.tower.parameters()).device
        for batch in [[prompt] for prompt in missing] if device.type == "cpu" else [missing]:
            counts = [int(self.is_visual(prompt.input_ids).sum()) for prompt in batch]
            features = self._encode(batch).cpu().split(counts, dim=1) if batch else ()
            for prompt, own in zip(batch, features, strict=True):
                prompt.features[tower] = own.clone()
        return torch.cat([prompt.features[tower] for prompt in visual], dim=1).to(device)

    def _encode(self, prompts: Sequence[Prompt]) -> Float[Tensor, "F n D"]:
        tower: Any = self.tower
        parameter = next(self.tower.parameters())
        pixels, grids = (
            torch.cat([p.media[n] for n in names for p in prompts if n in p.media])
            for names in zip(*MEDIA_FIELDS.values(), strict=True)
        )
        output = tower(
            pixels.to(parameter.device, parameter.dtype), grid_thw=grids.to(parameter.device)
        )
        deepstack = getattr(output, "deepstack_features", ())  # Qwen2.5-VL has none
        features = torch.stack([output.pooler_output, *deepstack])
        tokens = torch.cat([prompt.input_ids for prompt in prompts])
        is_video = tokens[self.is_visual(tokens)] == self.video_token
        if not is_video.any() or is_video.all():
            return features
        # the tower's rows are all images, then all videos: bring them into the order of the tokens
        row_of_token = torch.argsort(torch.argsort(is_video.int(), stable=True))
        return features[:, row_of_token.to(parameter.device)]

    def _fingerprint(self) -> str:
        """Return a name that is equal for equal weights and equal precision of the pass."""
        parameters = list(self.tower.parameters())
        version = sum(parameter._version for parameter in parameters)  # grows with every change
        if self._digest[0] != version:
            digest = hashlib.blake2b(digest_size=16)
            for parameter in parameters:
                weights = parameter.detach().cpu().contiguous().view(torch.uint8).numpy()
                digest.update(weights.tobytes())
            self._digest = (version, digest.hexdigest())
        kind = parameters[0].device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return f"{self._digest[1]} {precision}"
