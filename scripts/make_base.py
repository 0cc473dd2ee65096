"""Trains the embedded base: a miniature Qwen3-VL taught good and bad habits in every domain.

    python scripts/make_base.py --out src/copd/policy/tiny/model

For every problem of the digits world there are three ways to write a completion, told apart by
their first letter: a sound procedure, a careless one and a hasty guess. The base learns all three
equally often, so it is mediocre by construction: it can solve nearly everything, and mostly does
not. Which letter stands for the sound procedure differs between domains (`--world
conflict`, the one that ships, and `--world scarce`, where the trunk is small) or is the same
everywhere (`--world agree`).

With one CPU thread this takes about 20 minutes; it prints accuracy and pass@8 of what it made.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from copd.domains.digits import MODALITIES, DigitsDomain
from copd.domains.digits.question import Question
from copd.policy import Policy
from copd.policy.rendering.processors import TorchVideoProcessor, build_processor, save_processor
from copd.types import Image, Split, Text, Video

PATCH, MERGE, TEMPORAL = 8, 2, 2
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
CONTROL += ["<|image_pad|>", "<|video_pad|>"]
SOUND_LETTER = {
    "conflict": {"text": "AAA", "image": "BBB", "video": "ABA"},
    "agree": {"text": "AAA", "image": "AAA", "video": "AAA"},
    "scarce": {"text": "AAA", "image": "BBB", "video": "ABA"},
}
"""Letter of the sound procedure for each suite of a domain; the careless one has the other, C is
the bare answer."""


@dataclass(frozen=True)
class Trunk:
    """Sizes of a language model and its vision tower."""

    hidden: int
    intermediate: int
    layers: int
    head_dim: int
    mrope: tuple[int, int, int]
    vision_hidden: int


TRUNKS = {
    "conflict": Trunk(96, 256, 4, 24, (4, 4, 4), 64),
    "agree": Trunk(96, 256, 4, 24, (4, 4, 4), 64),
    "scarce": Trunk(64, 160, 3, 16, (4, 2, 2), 48),
}

LUCK = 0.2
"""How often a hasty guess is right."""
CHAT_TEMPLATE = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\n' }}
{%- if message.content is string %}{{- message.content }}{%- else %}
{%- for part in message.content %}
{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' %}{{- '<|video_pad|>' }}
{%- else %}{{- part.text }}{%- endif %}
{%- endfor %}{%- endif %}
{{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""


def build_tokenizer(domains: dict[str, DigitsDomain]) -> PreTrainedTokenizerFast:
    """A token per printable character, and one for each word of the questions and time stamp."""
    texts = [
        part.text
        for domain in domains.values()
        for index in range(600)
        for part in domain.question("train", index).parts
        if isinstance(part, Text)
    ]
    words = sorted({word for text in texts for word in re.findall(r" ?[A-Za-z]{2,}", text)})
    words += ["system", "user", "assistant"]
    stamps = [f"<{second + 0.25:.1f} seconds>" for second in range(6)]
    characters = ["\n", *map(chr, range(32, 127))]
    pieces = [*CONTROL, "<|unk|>", *characters]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(CONTROL)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in [*words, *stamps]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|unk|>",
        additional_special_tokens=[
            token for token in CONTROL if token not in ("<|im_end|>", "<|endoftext|>")
        ],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_config(tokenizer: PreTrainedTokenizerFast, trunk: Trunk) -> Qwen3VLConfig:
    ids = tokenizer.get_vocab()
    return Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": trunk.hidden,
            "intermediate_size": trunk.intermediate,
            "num_hidden_layers": trunk.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": trunk.head_dim,
            "max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [*trunk.mrope],
                "mrope_interleaved": True,
            },
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "bos_token_id": None,
            "tie_word_embeddings": True,
        },
        vision_config={
            "hidden_size": trunk.vision_hidden,
            "depth": 2,
            "num_heads": 4,
            "intermediate_size": 2 * trunk.vision_hidden,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": TEMPORAL,
            "out_hidden_size": trunk.hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def patches(frames: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Frames `F H W 3` to the rows the vision tower reads, and their grid, as Qwen's processors."""
    frames = frames.astype(np.float32) / 127.5 - 1
    time_, height, width = (
        frames.shape[0] // TEMPORAL,
        frames.shape[1] // PATCH,
        frames.shape[2] // PATCH,
    )
    rows = frames.transpose(0, 3, 1, 2).reshape(
        time_, TEMPORAL, 3, height // MERGE, MERGE, PATCH, width // MERGE, MERGE, PATCH
    )
    rows = rows.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return rows.reshape(time_ * height * width, -1), [time_, height, width]


class Encoder:
    """Questions to padded rows, prompt and three completions that do not see each other."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, model: Qwen3VLForConditionalGeneration):
        self.tokenizer, self.model = tokenizer, model
        self.pad_id = tokenizer.get_vocab()["<|endoftext|>"]

    def prompt(
        self, question: Question
    ) -> tuple[list[int], np.ndarray | None, list[int] | None, str]:
        text, rows, grid, kind = "<|im_start|>user\n", None, None, "text"
        for part in question.parts:
            if isinstance(part, Text):
                text += part.text
                continue
            if isinstance(part, Image):
                kind, frames = "image", np.stack([part.pixels] * TEMPORAL)
            else:
                kind, frames = "video", part.frames
            rows, grid = patches(frames)
            pads = f"<|{kind}_pad|>" * (grid[1] * grid[2] // MERGE**2)
            for group in range(grid[0]):
                if isinstance(part, Video):
                    stamp = (group * TEMPORAL + (TEMPORAL - 1) / 2) / part.fps
                    text += f"<{stamp:.1f} seconds>"
                text += f"<|vision_start|>{pads}<|vision_end|>"
        text += "<|im_end|>\n<|im_start|>assistant\n"
        return self.tokenizer.encode(text, add_special_tokens=False), rows, grid, kind

    def batch(self, items: list[tuple[Question, tuple[str, str, str]]]) -> dict[str, Any]:
        """`items` are questions of one domain, each with its completions."""
        prompts = [self.prompt(question) for question, _ in items]
        completions = [
            [self.tokenizer.encode(text + "<|im_end|>", add_special_tokens=False) for text in texts]
            for _, texts in items
        ]
        longest = max(len(p[0]) for p in prompts)
        total = max(len(p[0]) + sum(map(len, c)) for p, c in zip(prompts, completions, strict=True))
        size = len(items)
        ids = torch.full((size, total), self.pad_id)
        prompt_ids: Any = torch.full((size, longest), self.pad_id)
        prompt_mask = torch.zeros(size, longest, dtype=torch.long)
        mask = torch.eye(total, dtype=torch.bool).repeat(size, 1, 1)
        targets = torch.full((size, total), -100)
        offsets = torch.zeros(size, total, dtype=torch.long)
        for row, ((tokens, *_), group) in enumerate(zip(prompts, completions, strict=True)):
            start = n = len(tokens)
            ids[row, :n] = prompt_ids[row, :n] = torch.tensor(tokens)
            prompt_mask[row, :n] = 1
            mask[row, :n, :n] = torch.ones(n, n).tril().bool()
            for completion in group:
                end = start + len(completion)
                ids[row, start:end] = torch.tensor(completion)
                mask[row, start:end, :n] = True
                mask[row, start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
                targets[row, start : end - 1] = torch.tensor(completion[1:])
                offsets[row, start:end] = torch.arange(n, n + end - start)
                start = end
        first = torch.tensor([[c[0] for c in group] for group in completions])
        media, types = self._media(prompts, prompt_ids)
        positions, deltas = self.model.model.get_rope_index(
            prompt_ids, mm_token_type_ids=types, attention_mask=prompt_mask, **media[1]
        )
        full = (offsets + deltas).expand(3, -1, -1).clone()
        for row, (tokens, *_) in enumerate(prompts):
            full[:, row, : len(tokens)] = positions[:, row, : len(tokens)]
        lengths = torch.tensor([len(p[0]) for p in prompts])
        inputs = {
            "input_ids": ids,
            "position_ids": full,
            "attention_mask": mask[:, None],
            **media[0],
        }
        return {"inputs": inputs, "targets": targets, "first": first, "lengths": lengths}

    def _media(self, prompts: list, prompt_ids: Tensor) -> tuple[tuple[dict, dict], Any]:
        kind, config = prompts[0][3], self.model.config
        types = (prompt_ids == config.image_token_id).long() + 2 * (
            prompt_ids == config.video_token_id
        ).long()
        if kind == "text":
            return ({}, {}), types
        grid = torch.tensor([p[2] for p in prompts])
        pixels = torch.from_numpy(np.concatenate([p[1] for p in prompts]))
        names = (
            ("pixel_values", "image_grid_thw")
            if kind == "image"
            else ("pixel_values_videos", "video_grid_thw")
        )
        return ({names[0]: pixels, names[1]: grid}, {names[1]: grid}), types


def habits(question: Question, sound: str, rng: np.random.Generator) -> tuple[str, str, str]:
    """The three completions of a question; the careless procedure has the other letter."""
    careless = "B" if sound == "A" else "A"
    return (
        f"{sound}{question.worked}#{question.answer}",
        f"{careless}{question.careless}#{question.careless_answer}",
        f"C#{guess(question.answer, rng)}",
    )


def guess(answer: str, rng: np.random.Generator) -> str:
    """A hasty answer: right with probability `LUCK`, else near by."""
    if rng.random() < LUCK:
        return answer
    if answer in "abc":
        return str(rng.choice([label for label in "abc" if label != answer]))
    return str(int(answer) + int(rng.choice([-3, -2, -1, 1, 2, 3])))


def loss_of(model: Qwen3VLForConditionalGeneration, batch: dict) -> Tensor:
    """Mean cross-entropy of the completion tokens.

    The prompt's last position predicts three different first letters.
    """
    hidden = model.model(**batch["inputs"], use_cache=False).last_hidden_state
    keep = batch["targets"] >= 0
    logits = model.lm_head(hidden[keep])
    last = model.lm_head(hidden[torch.arange(len(hidden)), batch["lengths"] - 1])
    first = last.log_softmax(-1).gather(1, batch["first"])
    rest = torch.nn.functional.cross_entropy(logits, batch["targets"][keep], reduction="sum")
    return (rest - first.sum()) / (keep.sum() + first.numel())


def stream(
    domain: DigitsDomain, letters: str, size: int, seed: int
) -> Iterator[list[tuple[Question, tuple[str, str, str]]]]:
    rng = np.random.default_rng(seed)
    while True:
        indices = rng.integers(0, domain.num_problems("train"), size=size)
        questions = [(domain.question("train", int(i)), letters[int(i) % 3]) for i in indices]
        yield [(question, habits(question, letter, rng)) for question, letter in questions]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--world", choices=sorted(SOUND_LETTER), default="conflict")
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=16, help="problems of each domain per step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    sizes: dict[Split, int] = {"train": 1_000_000, "validation": 1, "test": 3000}
    domains = {m: DigitsDomain(m, m, tuple(suites), sizes) for m, suites in MODALITIES.items()}
    tokenizer = build_tokenizer(domains)
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer, TRUNKS[args.world]))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    encoder = Encoder(tokenizer, model)
    streams = [
        stream(domain, SOUND_LETTER[args.world][name], args.batch, args.seed + 1)
        for name, domain in domains.items()
    ]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min((step + 1) / 200, 0.5 + 0.5 * math.cos(math.pi * min(step / args.steps, 1))) + 0.01
        ),
    )
    start = time.time()
    for step in range(args.steps):
        losses = []
        for batches in streams:
            loss = loss_of(model, encoder.batch(next(batches)))
            loss.backward()
            losses.append(loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            shown = "  ".join(
                f"{name} {value:.3f}" for name, value in zip(domains, losses, strict=True)
            )
            print(f"step {step:5d}  {time.time() - start:6.0f} s  loss {shown}", flush=True)
    save(model, tokenizer, args.out)
    report(args.out, domains)


def report(folder: Path, domains: dict[str, DigitsDomain]) -> None:
    """What was made: accuracy and pass@8 at temperature 1 on held-out problems."""
    policy = Policy.load(folder)
    for name, domain in domains.items():
        problems = [domain.problem("test", index) for index in range(600)]
        groups = policy.sample(
            [policy.render(problem.messages) for problem in problems],
            group_size=8,
            max_tokens=48,
            temperature=1.0,
            generator=torch.Generator().manual_seed(0),
        )
        rewards = np.array(
            [
                [domain.verify(problem, completion.text) for completion in group]
                for problem, group in zip(problems, groups, strict=True)
            ]
        )
        print(f"{name}: accuracy {rewards.mean():.3f}, pass@8 {rewards.max(axis=1).mean():.3f}")


def save(
    model: Qwen3VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, out: Path
) -> None:
    """An ordinary Hugging Face folder: pictures from one visual token up, never resized."""
    sizes = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 128 * 128}
    settings = {
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": TEMPORAL,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    processor = build_processor(
        tokenizer,
        Qwen2VLImageProcessorPil(size=sizes, **settings),
        TorchVideoProcessor(size={**sizes, "longest_edge": 64 * 128 * 128}, fps=2, **settings),
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    save_processor(processor, out)


if __name__ == "__main__":
    main()
