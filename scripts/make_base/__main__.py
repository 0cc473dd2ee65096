"""Train the embedded base: a small Qwen3-VL with good and bad habits in every domain.

    python -m scripts.make_base --out src/copd/policy/tiny/model

Every problem of the digits world has three kinds of completions, distinguished by their first
letter: a sound procedure, a careless one and a hasty guess. The base learns all three equally
often. So it is mediocre by construction: it can solve nearly every problem, and mostly does not.
The letter of the sound procedure differs between domains (`--world conflict`, the base that ships,
and `--world scarce`, where the trunk is small) or is the same everywhere (`--world agree`).

With one CPU thread this takes about 20 minutes. It prints accuracy and pass@8 of the result.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3VLForConditionalGeneration

from benchmarks.model import CONTROL, build_config, rotary, save
from copd.domains.digits import MODALITIES, DigitsDomain
from copd.domains.digits.generator import Question
from copd.policy import Policy
from copd.types import Split, Text
from scripts.make_base.encoder import MERGE, PATCH, Encoder, Item

SOUND_LETTER = {
    "conflict": {"text": "AAA", "image": "BBB", "video": "ABA"},
    "agree": {"text": "AAA", "image": "AAA", "video": "AAA"},
    "scarce": {"text": "AAA", "image": "BBB", "video": "ABA"},
}
"""Letter of the sound procedure for each suite of a domain. The careless procedure has the other
one, and C is the bare answer."""

LUCK = 0.2
"""How often a hasty guess is right."""

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")

Domains = Mapping[str, DigitsDomain]


def build_tokenizer(domains: Domains) -> PreTrainedTokenizerFast:
    """Build a tokenizer with a token per character, and one per word and time stamp."""
    texts = [
        part.text
        for domain in domains.values()
        for index in range(600)
        for part in domain.generate("train", index).parts
        if isinstance(part, Text)
    ]
    words = sorted({word for text in texts for word in re.findall(r" ?[A-Za-z]{2,}", text)})
    words += ["system", "user", "assistant"]
    stamps = [f"<{second + 0.25:.1f} seconds>" for second in range(6)]
    vocabulary = [*CONTROL, "<|unk|>", "\n", *map(chr, range(32, 127))]
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(ids, [], unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([*CONTROL])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in [*words, *stamps]])
    named = ("<|im_end|>", "<|endoftext|>")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|unk|>",
        additional_special_tokens=[token for token in CONTROL if token not in named],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer: PreTrainedTokenizerFast, world: str) -> Qwen3VLForConditionalGeneration:
    """Build the model of a world with random weights."""
    is_small = world == "scarce"
    hidden, vision_hidden = (64, 48) if is_small else (96, 64)
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": hidden,
        "intermediate_size": 160 if is_small else 256,
        "num_hidden_layers": 3 if is_small else 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": 512,
        "rope_parameters": rotary(10000.0, (4, 2, 2) if is_small else (4, 4, 4)),
    }
    vision = {
        "hidden_size": vision_hidden,
        "depth": 2,
        "num_heads": 4,
        "intermediate_size": 2 * vision_hidden,
        "out_hidden_size": hidden,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLForConditionalGeneration(build_config(tokenizer, text, vision, PATCH))


def habits(question: Question, sound: str, rng: np.random.Generator) -> tuple[str, str, str]:
    """Return the three completions of a problem."""
    careless = "B" if sound == "A" else "A"
    return (
        f"{sound}{question.worked}#{question.answer}",
        f"{careless}{question.careless}#{question.careless_answer}",
        f"C#{guess(question.answer, rng)}",
    )


def guess(answer: str, rng: np.random.Generator) -> str:
    """Return a hasty answer: right with probability `LUCK`, else close."""
    if rng.random() < LUCK:
        return answer
    if answer in "abc":
        return str(rng.choice([label for label in "abc" if label != answer]))
    return str(int(answer) + int(rng.choice([-3, -2, -1, 1, 2, 3])))


def stream(domain: DigitsDomain, letters: str, size: int, seed: int) -> Iterator[list[Item]]:
    """Draw batches of problems of a domain without end."""
    rng = np.random.default_rng(seed)
    while True:
        indices = rng.integers(0, domain.num_problems("train"), size=size)
        questions = [(domain.generate("train", int(i)), letters[int(i) % 3]) for i in indices]
        yield [(question, habits(question, letter, rng)) for question, letter in questions]


def loss_of(model: Qwen3VLForConditionalGeneration, batch: dict[str, Any]) -> Tensor:
    """Return the mean cross-entropy of the completion tokens.

    The last position of a prompt predicts three different first letters.
    """
    hidden = model.model(**batch["inputs"], use_cache=False).last_hidden_state
    is_target = batch["targets"] >= 0
    logits = model.lm_head(hidden[is_target])
    last = model.lm_head(hidden[torch.arange(len(hidden)), batch["lengths"] - 1])
    first = last.log_softmax(-1).gather(1, batch["first"])
    rest = torch.nn.functional.cross_entropy(logits, batch["targets"][is_target], reduction="sum")
    return (rest - first.sum()) / (is_target.sum() + first.numel())


def train(
    model: Qwen3VLForConditionalGeneration,
    encoder: Encoder,
    streams: Mapping[str, Iterator[list[Item]]],
    *,
    steps: int,
    learning_rate: float,
) -> None:
    """Train with a batch of every domain per step, under warm-up and cosine decay."""

    def factor(step: int) -> float:
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1))
        return min((step + 1) / 200, cosine) + 0.01

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    start = time.time()
    for step in range(steps):
        losses = {}
        for name, batches in streams.items():
            loss = loss_of(model, encoder.batch(next(batches)))
            loss.backward()
            losses[name] = loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0:
            shown = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
            print(f"step {step:5d}  {time.time() - start:6.0f} s  loss {shown}", flush=True)


def report(folder: Path, domains: Domains) -> None:
    """Print accuracy and pass@8 at temperature 1 on held-out problems."""
    policy = Policy.load(folder)
    for name, domain in domains.items():
        problems = [domain.problem("test", index) for index in range(600)]
        prompts = [policy.render(problem.messages) for problem in problems]
        generator = torch.Generator().manual_seed(0)
        groups = policy.sample(
            prompts, group_size=8, max_tokens=48, temperature=1.0, generator=generator
        )
        rewards = np.array(
            [
                [domain.verify(problem, completion.text) for completion in group]
                for problem, group in zip(problems, groups, strict=True)
            ]
        )
        print(f"{name}: accuracy {rewards.mean():.3f}, pass@8 {rewards.max(axis=1).mean():.3f}")


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
    model = build_model(tokenizer, args.world)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    letters = SOUND_LETTER[args.world]
    streams = {
        name: stream(domain, letters[name], args.batch, args.seed + 1)
        for name, domain in domains.items()
    }
    encoder = Encoder(tokenizer, model)
    train(model, encoder, streams, steps=args.steps, learning_rate=args.learning_rate)
    # pictures from one visual token up are never resized
    limits = {"shortest_edge": (PATCH * MERGE) ** 2, "longest_edge": 128 * 128}
    clips = {**limits, "longest_edge": 64 * 128 * 128}
    save(model, tokenizer, args.out, limits=limits, clip_limits=clips)
    report(args.out, domains)


if __name__ == "__main__":
    main()
