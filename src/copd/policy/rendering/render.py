"""From chat messages to prompts: the chat template, token ids and pixel rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from copd.policy.rendering.pixels import TemplatedPrompt, process_media
from copd.policy.rendering.processors import (
    MODEL_TYPES,
    Processor,
    load_processor,
    save_processor,
)
from copd.policy.sources import (
    base_of,
    find_model,
    find_tokenizer,
    no_progress_bars,
    pretrained_arguments,
)
from copd.types import Image, Message, Text, Video


@dataclass(frozen=True, eq=False)
class Prompt:
    """The model inputs of a conversation, up to where the assistant's turn begins."""

    input_ids: Tensor
    """Shape `L`, int64, media placeholders expanded."""

    media: dict[str, Tensor] = field(default_factory=dict)
    """`mm_token_type_ids` of shape `L` and, where there are any, `pixel_values`, `image_grid_thw`,
    `pixel_values_videos`, `video_grid_thw` and `second_per_grid_ts`. Empty for text."""

    features: dict[str, Tensor] = field(default_factory=dict)
    """Features of the pixels by vision tower, filled when a frozen tower encodes the prompt."""

    @property
    def num_bytes(self) -> int:
        """Memory that the prompt holds, in bytes."""
        tensors = (self.input_ids, *self.media.values(), *self.features.values())
        return sum(tensor.nbytes for tensor in tensors)


@dataclass(frozen=True, eq=False)
class Renderer:
    """A tokenizer and, for a model that reads images and videos, its processor."""

    tokenizer: PreTrainedTokenizerBase
    processor: Processor | None

    @classmethod
    def load(
        cls, path: str, config: PreTrainedConfig, *, trust_remote_code: bool = False
    ) -> Renderer:
        """Load the renderer of a folder or hub name; families other than Qwen-VL read text only."""
        with no_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(
                **pretrained_arguments(path), trust_remote_code=trust_remote_code
            )
        processor = None
        if config.model_type in MODEL_TYPES:
            processor = load_processor(
                path,
                tokenizer,
                trust_remote_code=trust_remote_code,
                model_type=config.model_type,
            )
        elif tokenizer.chat_template is None:
            tokenizer.chat_template = plain_template(tokenizer)
        return cls(tokenizer, processor)

    @property
    def modalities(self) -> frozenset[str]:
        """The kinds of content that the model can read."""
        return frozenset({"text"} if self.processor is None else {"text", "image", "video"})

    def render(self, messages: Sequence[Message]) -> Prompt:
        """Apply the chat template, up to where the assistant's turn begins."""
        return self.render_all([messages])[0]

    def render_all(self, conversations: Sequence[Sequence[Message]]) -> list[Prompt]:
        """Render many conversations, with the same bits as one by one but at less cost."""
        templated = [self._apply_template(messages) for messages in conversations]
        visual = [prompt for prompt in templated if prompt.images or prompt.videos]
        media = iter(process_media(self.processor, visual) if self.processor and visual else ())
        prompts = []
        for prompt in templated:
            if prompt.images or prompt.videos:
                inputs = next(media)
                prompts.append(Prompt(inputs.pop("input_ids"), inputs))
            else:
                ids = self.tokenizer(prompt.text, add_special_tokens=False).input_ids
                prompts.append(Prompt(torch.tensor(ids, dtype=torch.int64)))
        return prompts

    def save(self, path: str | Path) -> None:
        """Save tokenizer, chat template and processor settings as Hugging Face files."""
        if self.processor is None:
            self.tokenizer.save_pretrained(path)
        else:
            save_processor(self.processor, path)

    def _apply_template(self, messages: Sequence[Message]) -> TemplatedPrompt:
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
        return TemplatedPrompt(text, images, videos)

    def _content(self, message: Message) -> str | list[dict[str, str]]:
        """Return one string for a text model's template, or a list of parts for a Qwen-VL's."""
        if self.processor is None:
            return "".join(part.text for part in message.content if isinstance(part, Text))
        return [
            {"type": "text", "text": part.text}
            if isinstance(part, Text)
            else {"type": "image" if isinstance(part, Image) else "video"}
            for part in message.content
        ]


def plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Build a template for base models without one: each message's text and a line break.

    It starts with the token that the tokenizer puts before every text, if there is one.
    """
    first = tokenizer("a").input_ids[:1]
    begin = "{{ bos_token }}" if first == [tokenizer.bos_token_id] else ""
    return begin + "{% for message in messages %}{{ message.content }}\n{% endfor %}"


def load_renderer(path: str, *, trust_remote_code: bool = False) -> Renderer:
    """Load the renderer of a model without its weights."""
    source = find_model(path)
    config = AutoConfig.from_pretrained(
        **pretrained_arguments(base_of(source) or source), trust_remote_code=trust_remote_code
    )
    return Renderer.load(find_tokenizer(source), config, trust_remote_code=trust_remote_code)
