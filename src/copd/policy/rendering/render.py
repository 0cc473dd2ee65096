"""Chat messages to token ids and pixels: the only place for chat templates. Knows no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from copd.policy.loading import base_of, find_model, find_tokenizer, quiet, where
from copd.policy.rendering.pixels import Templated, read_media
from copd.policy.rendering.processors import (
    MODEL_TYPES,
    Processor,
    load_processor,
    save_processor,
)
from copd.types import ContentPart, Image, Message, Text, Video


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a policy is conditioned on, as its model takes it."""

    input_ids: Tensor
    """Shape `Lp`, int64, media placeholders expanded."""
    media: dict[str, Tensor] = field(default_factory=dict)
    """`pixel_values`, `image_grid_thw`, `pixel_values_videos`, `video_grid_thw` and
    `second_per_grid_ts` as far as there are any, and `mm_token_type_ids` of shape `Lp`; empty for
    text."""

    features: dict[str, Tensor] = field(default_factory=dict)
    """What frozen vision towers made of the pixels, by tower: filled when the prompt is read."""

    @property
    def num_bytes(self) -> int:
        """Memory it holds."""
        tensors = (self.input_ids, *self.media.values(), *self.features.values())
        return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True, eq=False)
class Renderer:
    """A tokenizer and, for a model that sees, its processor."""

    tokenizer: PreTrainedTokenizerBase
    processor: Processor | None

    @classmethod
    def load(
        cls, path: str, config: PreTrainedConfig, *, trust_remote_code: bool = False
    ) -> Renderer:
        """From a Hugging Face folder or hub name; other families than Qwen-VL read text only."""
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                **where(path), trust_remote_code=trust_remote_code
            )
        if config.model_type not in MODEL_TYPES:
            if tokenizer.chat_template is None:
                tokenizer.chat_template = plain_template(tokenizer)
            return cls(tokenizer, None)
        processor = load_processor(
            path,
            tokenizer,
            trust_remote_code=trust_remote_code,
            model_type=config.model_type,
        )
        return cls(tokenizer, processor)

    @property
    def modalities(self) -> frozenset[str]:
        """The kinds of message parts the model can read."""
        return frozenset({"text"} if self.processor is None else {"text", "image", "video"})

    def render(self, messages: Sequence[Message]) -> Prompt:
        """Messages through the model's own template, up to where the assistant begins to speak."""
        return self.render_all([messages])[0]

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[Prompt]:
        """Many at once, bit for bit as one by one: what has pictures or clips costs less so."""
        templated = [self._apply_template(messages) for messages in conversations]
        seeing = [prompt for prompt in templated if prompt.images or prompt.videos]
        read = iter(read_media(self.processor, seeing) if self.processor and seeing else ())
        return [
            _seen(next(read)) if prompt.images or prompt.videos else self._read_text(prompt.text)
            for prompt in templated
        ]

    def save(self, path: str | Path) -> None:
        """Tokenizer, chat template and processor settings as ordinary Hugging Face files."""
        if self.processor is None:
            self.tokenizer.save_pretrained(path)
        else:
            save_processor(self.processor, path)

    def _read_text(self, text: str) -> Prompt:
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return Prompt(torch.tensor(ids, dtype=torch.int64))

    def _apply_template(self, messages: Sequence[Message]) -> Templated:
        parts = [part for message in messages for part in message.content]
        images = [part for part in parts if isinstance(part, Image)]
        videos = [part for part in parts if isinstance(part, Video)]
        if self.processor is None and (images or videos):
            raise ValueError(
                f"this model reads text only: got {len(images)} images and {len(videos)} "
                f"videos. Choose a model of {', '.join(sorted(MODEL_TYPES))}, or a text domain."
            )
        if self.tokenizer.chat_template is None:
            raise ValueError(
                "the model has no chat template: got a folder without chat_template.jinja. "
                "Add that file, or choose an instruction-tuned model."
            )
        conversation = [
            {"role": message.role, "content": self._content(message)} for message in messages
        ]
        text = self.tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=True
        )
        assert isinstance(text, str)
        return Templated(text, images, videos)

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        """Templates of text models expect one string, those of models that see a list of parts."""
        if self.processor is None:
            return "".join(part.text for part in message.content if isinstance(part, Text))
        return [_template_part(part) for part in message.content]


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """For a base model that knows no chat: what the messages say, a line break after each.

    A token the tokenizer begins every text with begins this one, too.
    """
    first = tokenizer("a").input_ids[:1]
    begin = "{{ bos_token }}" if first == [tokenizer.bos_token_id] else ""
    return begin + "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def _seen(read: dict[str, Tensor]) -> Prompt:
    return Prompt(read["input_ids"], {name: read[name] for name in read if name != "input_ids"})


def _template_part(part: ContentPart) -> dict[str, str]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    return {"type": "image" if isinstance(part, Image) else "video"}


def load_renderer(path: str, *, trust_remote_code: bool = False) -> Renderer:
    """The renderer of a model alone: none of its weights are read."""
    source = find_model(path)
    config = AutoConfig.from_pretrained(
        **where(base_of(source) or source), trust_remote_code=trust_remote_code
    )
    return Renderer.load(find_tokenizer(source), config, trust_remote_code=trust_remote_code)
