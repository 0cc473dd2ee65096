"""TRL's side: its trainers as users start them, at their leanest."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForImageTextToText, PrinterCallback, TrainerCallback
from trl import (  # pyright: ignore[reportMissingImports]
    DistillationConfig,
    DistillationTrainer,
    GRPOConfig,
    GRPOTrainer,
)

from benchmarks.cases import Case, Shapes, digit_share, planned_lengths
from benchmarks.lengths import PlannedGenerate, banned_tokens
from benchmarks.turns import Turns
from copd.config import OptimizerConfig
from copd.policy.rendering.render import Renderer
from copd.types import Image, Text

_STEPS = 1000
"""More steps than are ever taken."""


class Wait(TrainerCallback):
    """Lets the parent decide on every step.

    A step lasts from the end of the one before: loading the data counts, waiting does not.
    """

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.turns.ready(micro_batch=args.per_device_train_batch_size)
        control.should_training_stop = not self.turns.next()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = not self.turns.next()


def take_turns(case: Case, folder: Path, turns: Turns, *, micro_batch: int) -> None:
    """Take a step of the trainer per turn; `micro_batch` is in rows, 0 for all at once."""
    turns.start_memory()
    with tempfile.TemporaryDirectory() as output:
        settings = shared_settings(case, output, micro_batch or case.num_rows)
        build = _distillation if case.work == "distill" else _grpo
        trainer = build(case, folder, settings)
        trainer.add_callback(Wait(turns))
        trainer.remove_callback(PrinterCallback)
        plan_generation(trainer, case, turns)
        trainer.train()


def shared_settings(case: Case, output: str, micro_batch: int) -> dict[str, Any]:
    """Return settings with our optimizer's numbers: float32, no logging, no saving."""
    ours = OptimizerConfig()
    return {
        "output_dir": output,
        "max_steps": _STEPS,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": case.num_rows // micro_batch,
        "max_completion_length": case.lengths[1],
        "temperature": 1.0,
        "learning_rate": ours.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": ours.weight_decay,
        "adam_beta1": ours.betas[0],
        "adam_beta2": ours.betas[1],
        "adam_epsilon": ours.eps,
        "max_grad_norm": ours.max_grad_norm,
        "shuffle_dataset": False,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "logging_strategy": "no",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _grpo(case: Case, folder: Path, settings: dict[str, Any]) -> GRPOTrainer:
    """Build a strictly on-policy trainer with a token-mean loss over the whole batch, as ours.

    Without a reference model and with one iteration it makes no pass for old log-probabilities.
    """

    def reward(completions: list[Any], **_: Any) -> list[float | None]:
        return [digit_share(completion[0]["content"]) for completion in completions]

    config = GRPOConfig(
        num_generations=case.group_size,
        beta=0.0,
        loss_type="dapo",
        num_iterations=1,
        epsilon=0.2,
        epsilon_high=0.28,
        **settings,
    )
    data: dict[str, Any] = {
        "train_dataset": rows(case, repeats=1),
        "processing_class": processing_class(case, folder),
    }
    return GRPOTrainer(model=load_model(folder), reward_funcs=reward, args=config, **data)


def _distillation(case: Case, folder: Path, settings: dict[str, Any]) -> DistillationTrainer:
    """Build a trainer with the reverse KL on the student's own completions.

    It has one teacher and one completion per row. So a group is its prompt repeated, and two
    teachers are one that scores all rows, which costs at most as much as two with half each.
    """
    return DistillationTrainer(
        model=load_model(folder),
        teacher_model=load_model(folder),
        args=DistillationConfig(beta=1.0, **settings),
        train_dataset=rows(case, repeats=case.group_size),
        processing_class=processing_class(case, folder),
    )


def load_model(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")


def processing_class(case: Case, folder: Path) -> Any:
    """Return the processor for pictures; for text the tokenizer alone, which is less work."""
    renderer = Renderer.load(str(folder), AutoConfig.from_pretrained(folder))
    return renderer.processor if case.media else renderer.tokenizer


def rows(case: Case, *, repeats: int) -> Dataset:
    """Return problems 0, 1, 2, ... as conversations, created on access."""
    count = _STEPS * case.num_prompts * repeats
    domain = Shapes(case.domains[0], case.media)

    def convert(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        problems = [domain.problem("train", index // repeats) for index in batch["index"]]
        parts = [part for problem in problems for part in problem.messages[0].content]
        texts = [part.text for part in parts if isinstance(part, Text)]
        pictures = [PIL.Image.fromarray(p.pixels) for p in parts if isinstance(p, Image)]
        prompts = [[{"role": "user", "content": text}] for text in texts]
        return {"prompt": prompts, **({"image": pictures} if pictures else {})}

    return Dataset.from_dict({"index": np.arange(count)}).with_transform(convert)


def plan_generation(trainer: Any, case: Case, turns: Turns) -> None:
    """Wrap the model's `generate`: lengths are planned, and its time is the sampling phase."""
    model: Any = trainer.model
    generate, tokenizer = model.generate, trainer._tokenizer
    end, longest = tokenizer.eos_token_id, case.lengths[1]
    banned = banned_tokens(tokenizer, model.config.text_config.vocab_size)

    def planned(*args: Any, **kwargs: Any) -> Any:
        lengths = planned_lengths(case, turns.step)
        processor = PlannedGenerate(lengths, end, longest, banned)
        with turns.phase("sampling"):
            output = generate(*args, logits_processor=[processor], **kwargs)
        turns.sampled(_check_lengths(output, lengths, end, longest))
        return output

    model.generate = planned


def _check_lengths(output: Any, lengths: NDArray[np.int64], end: int, longest: int) -> int:
    """Return the number of sampled tokens, and check that rows end where it was planned."""
    tokens = output[:, output.shape[1] - int(lengths.max()) :]
    is_end = (tokens == end).numpy()
    found = np.where(is_end.any(axis=1), is_end.argmax(axis=1) + 1, longest)
    assert (found == lengths).all(), "generated lengths are not the planned ones"
    return int(found.sum())
