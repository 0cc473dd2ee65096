"""The command line: output, exit codes, and starting without torch."""

import argparse
import contextlib
import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from copd.cli import Stopped, build_parser, main, split_overrides, stoppable
from copd.cli.merge import merge_config
from copd.config import DareMerge, TiesMerge, UniformMerge, WeightedMerge, load_config
from copd.planning import memory_report
from copd.planning.cost import describe, plan_cost
from copd.recipes import build_plan, to_dict

LAPTOP = str(Path(__file__).parents[2] / "configs" / "laptop.toml")


class FailingStream(io.StringIO):
    """A stream that fails when something is written to it."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def write(self, text: str) -> int:
        raise self._error


# Output and exit codes


def test_plan_prints_the_plan_and_its_cost(capsys: pytest.CaptureFixture[str]):
    config = load_config(LAPTOP, ["--recipe.rounds", "2"])
    plan = build_plan(config)
    assert main(["plan", LAPTOP, "--recipe.rounds", "2"]) == 0
    memory = memory_report(config, plan).describe()
    assert "peak, update" in memory
    expected = f"{describe(plan, plan_cost(plan, config))}\n\n{memory}\n"
    assert capsys.readouterr().out == expected


def test_plan_prints_json(capsys: pytest.CaptureFixture[str]):
    plan = build_plan(load_config(LAPTOP))
    assert main(["plan", "--json", LAPTOP, "--completion-tokens", "7"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["plan"] == to_dict(plan)
    assert printed["cost"]["completion_tokens"] == 7
    assert printed["cost"]["total"]["steps"] == 300
    assert printed["memory"]["peak"] == max(printed["memory"]["phases"].values())


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["plan", "nowhere.toml"], "copd: error: The config must be a file: got 'nowhere.toml'"),
        (["train", LAPTOP, "--recipe.rundos", "3"], "Did you mean recipe.rounds?"),
        (["plan", LAPTOP, "--sede", "3"], "copd: error: sede is not a setting: got 3"),
        (["plan", LAPTOP, "--completion-tokens", "41"], "Pass the mean length you expect."),
        (["eval", "tiny", "--config", LAPTOP, "--rollout.group_size", "1"], "at least 2: got 1."),
        (["merge", "a", "--out", "b"], "copd: error: copd merge needs at least two different"),
    ],
)
def test_a_mistake_of_the_user_is_a_sentence_and_exit_code_2(
    words: list[str], remedy: str, capsys: pytest.CaptureFixture[str]
):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert remedy in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_every_mistake_is_a_line_of_its_own(capsys: pytest.CaptureFixture[str]):
    assert main(["plan", LAPTOP, "--seed", "-1", "--recipe.rounds", "0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("copd: error: ") for line in lines)


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["plan"],
        ["plan", LAPTOP, "--completion-tokens", "0"],
        ["eval", "tiny"],
        ["eval", "tiny", "--config", LAPTOP, "--split", "trian"],
        ["eval", "tiny", "--config", LAPTOP, "--temperature", "nan"],
        ["eval", "tiny", "--config", LAPTOP, "--num-problems", "1.5"],
        ["merge", "a", "b"],
    ],
    ids=" ".join,
)
def test_words_that_cannot_be_parsed_end_with_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_without_a_command_there_is_help(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("copd 0.")


def test_help_of_train_lists_the_settings(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    assert "  group_size            integer = 8" in capsys.readouterr().out


# Interrupts and full disks


def test_an_interrupt_ends_with_130(capsys: pytest.CaptureFixture[str]):
    with contextlib.redirect_stdout(FailingStream(KeyboardInterrupt())):
        assert main(["plan", LAPTOP]) == 130
    assert capsys.readouterr().err.startswith("copd: interrupted. ")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_with_1(number: int, capsys: pytest.CaptureFixture[str]):
    with contextlib.redirect_stdout(FailingStream(OSError(number, os.strerror(number)))):
        assert main(["plan", LAPTOP]) == 1
    assert "copd: error: The disk is full: got " in capsys.readouterr().err


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), RuntimeError("a bug")])
def test_other_errors_propagate(error: Exception):
    with (
        contextlib.redirect_stdout(FailingStream(error)),
        pytest.raises(type(error)) as caught,
    ):
        main(["plan", LAPTOP])
    assert caught.value is error


@pytest.mark.parametrize(
    ("error", "exit_code", "start"),
    [
        (KeyboardInterrupt(), 130, "interrupted. "),
        (OSError(errno.ENOSPC, "No space left"), 1, "error: The disk is full: "),
    ],
)
def test_a_stopped_run_says_how_to_continue(
    tmp_path: Path, error: BaseException, exit_code: int, start: str
):
    run = tmp_path / "my run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(Stopped) as stopped, stoppable(run):
        raise error
    assert stopped.value.exit_code == exit_code
    assert str(stopped.value).startswith(start)
    assert str(stopped.value).endswith(
        f"Complete checkpoints are intact; continue with: copd resume '{run}'"
    )


def test_nothing_to_resume_before_the_run_has_begun(tmp_path: Path):
    with pytest.raises(Stopped, match="run the command again"), stoppable(tmp_path):
        raise KeyboardInterrupt


# Overrides among other words


@pytest.mark.parametrize(
    ("words", "rest", "overrides"),
    [
        (
            ["train", "--recipe.rounds", "3", "run.toml", "--seed=1"],
            ["train", "run.toml"],
            ["--recipe.rounds", "3", "--seed=1"],
        ),
        (
            ["plan", "--completion-tokens", "9", "run.toml", "--json", "--seed", "-1"],
            ["plan", "--completion-tokens", "9", "run.toml", "--json"],
            ["--seed", "-1"],
        ),
        (
            ["plan", "run.toml", "--completion-tokens=9", "--seed", "--recipe.rounds", "1"],
            ["plan", "run.toml", "--completion-tokens=9"],
            ["--seed", "--recipe.rounds", "1"],
        ),
        (
            ["eval", "m", "--config", "run.toml", "--seed", "1", "--domains.a.suites", "[]"],
            ["eval", "m", "--config", "run.toml", "--seed", "1"],
            ["--domains.a.suites", "[]"],
        ),
        (["merge", "a", "b", "--out", "c"], ["merge", "a", "b", "--out", "c"], []),
        (["train", "-h"], ["train", "-h"], []),
        ([], [], []),
    ],
)
def test_overrides_are_separated_from_options(
    words: list[str], rest: list[str], overrides: list[str]
):
    assert split_overrides(words) == (rest, overrides)


# Merge options


def merge_words(*words: str) -> argparse.Namespace:
    return build_parser().parse_args(["merge", "runs/a", "runs/b", "--out", "c", *words])


def test_merge_options_become_a_merge_config():
    dare = ("--method", "dare", "--base", "tiny", "--density", "0.25", "--seed", "3")
    assert merge_config(merge_words()) == UniformMerge()
    assert merge_config(merge_words(*dare)) == DareMerge(density=0.25, seed=3)
    ties = merge_words("--method", "ties", "--base", "tiny", "--scale", "0.5")
    assert merge_config(ties) == TiesMerge(scale=0.5)
    assert ties.base == Path("tiny")


def test_merge_weights_belong_to_the_models_in_order():
    words = merge_words("--method", "weighted", "--weights", "0.25", "0.75")
    assert merge_config(words) == WeightedMerge(weights={"runs/a": 0.25, "runs/b": 0.75})


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--density", "0.5"], "Remove it, or use --method ties or dare."),
        (["--seed", "0"], "or use --method dare."),
        (["--base", "a"], "task_arithmetic or ties or dare"),
        (["--weights", "1", "2"], "or use --method weighted."),
        (["--method", "weighted"], "Add --weights."),
        (["--method", "ties"], "Add --base."),
        (["--method", "weighted", "--weights", "1"], "Give them in the order of the models."),
        (["--method", "ties", "--base", "a", "--density", "2"], "density must be at most 1"),
        (["--method", "ties", "--base", "a", "--scale", "0"], "scale must be above 0"),
    ],
    ids=" ".join,
)
def test_merge_options_that_do_not_fit_are_refused(words: list[str], remedy: str):
    with pytest.raises(ValueError, match=remedy):
        merge_config(merge_words(*words))


def test_a_model_is_merged_once():
    arguments = build_parser().parse_args(["merge", "a", "a", "--out", "c"])
    with pytest.raises(ValueError, match="Name each model folder once"):
        merge_config(arguments)


# Starting fast


def modules_after(statement: str) -> set[str]:
    """Return the modules that a new process has loaded after a statement."""
    script = f"""
import contextlib, io, sys
from copd.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    assert {statement} == 0
print("\\n".join(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


HEAVY = {"torch", "transformers", "ray", "numpy", "rich"}


@pytest.mark.parametrize(
    "arguments", [["plan", LAPTOP], ["train", "--help"], ["diagnose", "--help"]], ids=" ".join
)
def test_plan_and_help_answer_without_torch(arguments: list[str]):
    assert not HEAVY & modules_after(f"main({arguments!r})")


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_the_first_help_needs_no_configuration_classes_either(argument: str):
    assert not (HEAVY | {"pydantic", "copd.config"}) & modules_after(f"main([{argument!r}])")


def test_a_process_ends_with_the_exit_code():
    done = subprocess.run(
        [sys.executable, "-m", "copd", "plan", "nowhere.toml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("copd: error: ")
    assert "Traceback" not in done.stderr
