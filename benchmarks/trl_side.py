"""TRL's side: its trainers as their users start them, at their leanest. The only file that imports
TRL.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from numpy.typing import NDArray
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PrinterCallback,
    TrainerCallback,
)
from trl.trainer.distillation_config import (  # pyright: ignore[reportMissingImports]
    DistillationConfig,
)
from trl.trainer.distillation_trainer import (  # pyright: ignore[reportMissingImports]
    DistillationTrainer,
)
from trl.trainer.grpo_config import GRPOConfig  # pyright: ignore[reportMissingImports]
from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]

from benchmarks.cases import Case, Shapes, digit_share, planned_lengths
from benchmarks.lengths import PlannedGenerate, control_tokens
from benchmarks.turns import Turns
from copd.config import OptimizerConfig
from copd.policy.loading import quiet
from copd.policy.rendering.render import Renderer
from copd.types import Image, Text

_STEPS = 1000
"""More than are ever asked for."""


class Wait(TrainerCallback):
    """Hands every step to the parent.

    From one step's end to the next one's: loading the data counts, waiting does not.
    """

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.turns.ready(micro_batch=args.per_device_train_batch_size)
        control.should_training_stop = not self.turns.next()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_training_stop = not self.turns.next()


def take_turns(case: Case, folder: Path, turns: Turns, *, micro_batch: int) -> None:
    """A step of the trainer per turn, its rows in micro-batches of a size (0: all at once)."""
    turns.model_comes_now()
    with tempfile.TemporaryDirectory() as output:
        settings = shared_settings(case, output, micro_batch or case.num_rows)
        build = _distillation if case.work == "distill" else _grpo
        trainer = build(case, folder, settings, Wait(turns))
        trainer.remove_callback(PrinterCallback)
        plan_generation(trainer, case, turns)
        trainer.train()


def shared_settings(case: Case, output: str, micro_batch: int) -> dict[str, Any]:
    """float32 without checkpointing, evaluation, logging or saving; our optimizer's numbers."""
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


def _grpo(case: Case, folder: Path, settings: dict[str, Any], wait: Wait) -> GRPOTrainer:
    """Strictly on-policy: no reference model, one iteration, so no pass for old log-probabilities.

    Token-mean loss over the whole batch, as ours.
    """

    def reward(completions: list[Any], **_: Any) -> list[float | None]:
        return [digit_share(completion[0]["content"]) for completion in completions]

    return GRPOTrainer(
        model=load_model(folder),
        reward_funcs=reward,
        args=GRPOConfig(
            num_generations=case.group_size,
            beta=0.0,
            loss_type="dapo",
            num_iterations=1,
            epsilon=0.2,
            epsilon_high=0.28,
            **settings,
        ),
        train_dataset=rows(case, repeats=1),
        processing_class=processing_class(case, folder),
        callbacks=[wait],
    )


def _distillation(
    case: Case, folder: Path, settings: dict[str, Any], wait: Wait
) -> DistillationTrainer:
    """Reverse KL on the student's own completions.

    The trainer has one teacher and one completion per row, so a group is its prompt repeated, and
    two teachers with half the rows each cost at least what one teacher with all rows does: that
    is what is measured.
    """
    return DistillationTrainer(
        model=load_model(folder),
        teacher_model=load_model(folder),
        args=DistillationConfig(beta=1.0, **settings),
        train_dataset=rows(case, repeats=case.group_size),
        processing_class=processing_class(case, folder),
        callbacks=[wait],
    )


def load_model(folder: Path) -> Any:
    with quiet():
        return AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")


def processing_class(case: Case, folder: Path) -> Any:
    """The processor for pictures; for text the tokenizer alone, which is less work."""
    renderer = Renderer.load(str(folder), AutoConfig.from_pretrained(folder))
    assert renderer.processor is not None, "the miniature sees"
    return renderer.processor if case.media else renderer.tokenizer


def rows(case: Case, *, repeats: int) -> Dataset:
    """Problems 0, 1, 2, ... as conversations, made when asked for."""
    count = _STEPS * case.num_prompts * repeats
    domain = Shapes(case.domains[0], case.media)

    def convert(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        problems = [domain.problem("train", index // repeats) for index in batch["index"]]
        parts = [problem.messages[0].content for problem in problems]
        texts = [part.text for content in parts for part in content if isinstance(part, Text)]
        converted: dict[str, list[Any]] = {
            "prompt": [[{"role": "user", "content": text}] for text in texts]
        }
        if case.media:
            pictures = [p.pixels for content in parts for p in content if isinstance(p, Image)]
            converted["image"] = [PIL.Image.fromarray(pixels) for pixels in pictures]
        return converted

    return Dataset.from_dict({"index": np.arange(count)}).with_transform(convert)


def plan_generation(trainer: Any, case: Case, turns: Turns) -> None:
    """Wraps the model's `generate`: planned lengths, and its time is the sampling phase."""
    model: Any = trainer.model
    generate = model.generate
    tokenizer = trainer._tokenizer
    end = tokenizer.eos_token_id
    control = control_tokens(tokenizer)

    def planned(*args: Any, **kwargs: Any) -> Any:
        lengths = planned_lengths(case, turns.step)
        processor = PlannedGenerate(lengths, end, case.lengths[1], control)
        with turns.phase("sampling"):
            output = generate(*args, logits_processor=[processor], **kwargs)
        turns.sampled(_check_lengths(output, lengths, end, case.lengths[1]))
        return output

    model.generate = planned


def _check_lengths(output: Any, lengths: NDArray[np.int64], end: int, longest: int) -> int:
    """Tokens that were sampled; an end token is nowhere but where it was planned."""
    tokens = output[:, output.shape[1] - int(lengths.max()) :]
    is_end = (tokens == end).numpy()
    found = np.where(is_end.any(axis=1), is_end.argmax(axis=1) + 1, longest)
    assert (found == lengths).all(), "generated lengths are not the planned ones"
    return int(found.sum())
