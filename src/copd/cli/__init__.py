"""The command line.

argparse parses the options. Overrides such as `--domains.text.suites` are separated first: they
contain names that the user chose, so no parser could list them. Commands import torch only when
they need it.
"""

from __future__ import annotations

import argparse
import errno
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from copd.cli import compare, data, diagnose, merge, plan, report
from copd.cli.numbers import count, natural, non_negative

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_OWN_OPTIONS = {
    "train": ("--help",),
    "plan": plan.OWN_OPTIONS,
    "compare": compare.OWN_OPTIONS,
    "data": data.OWN_OPTIONS,
}
"""Commands in which every other option is an override, with or without a dot."""


class Stopped(Exception):
    """Work that was stopped from outside; the message says how to continue."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0 if done, 2 on a user's error, 130 if interrupted, 1 otherwise."""
    words = list(sys.argv[1:] if argv is None else argv)
    rest, overrides = split_overrides(words)
    parser = build_parser(_settings_for(words))
    arguments = parser.parse_args(rest)
    if arguments.version:
        return _version()
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        with stoppable():
            _COMMANDS[arguments.command](arguments, overrides)
    except Stopped as stopped:
        _say(str(stopped))
        return stopped.exit_code
    except (ValueError, FileNotFoundError) as error:
        for line in str(error).splitlines():
            _say(f"error: {line}")
        return 2
    return 0


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate overrides, `--section.key VALUE`, from the words for argparse."""
    command = words[0] if words else ""
    rest: list[str] = []
    overrides: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, has_value, _ = word.partition("=")
        is_own = command not in _OWN_OPTIONS or name in _OWN_OPTIONS[command]
        if not name.startswith("--") or (is_own and "." not in name):
            rest.append(word)
            continue
        overrides.append(word)
        if not has_value and queue and not queue[0].startswith("--"):
            overrides.append(queue.pop(0))
    return rest, overrides


def build_parser(settings: str = "") -> argparse.ArgumentParser:
    """Build the parser; `settings` ends the help of commands that accept overrides."""
    about = "Co-Evolving Policy Distillation: train experts that teach each other, and merge them."
    parser = argparse.ArgumentParser(prog="copd", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    train = _command(commands, "train", "train the run of a configuration", settings)
    train.add_argument("config", metavar="CONFIG", type=Path, help="TOML file")
    about = "continue a run from its newest complete checkpoint"
    resume = _command(
        commands,
        "resume",
        about,
        "Settings of the engine can be changed, as by --engine.type local.",
    )
    resume.add_argument("run", metavar="RUN", type=Path, help="run directory")
    plan.add_options(_command(commands, "plan", plan.ABOUT, settings))
    compare.add_options(_command(commands, "compare", compare.ABOUT))
    _add_eval(commands)
    diagnose.add_options(_command(commands, "diagnose", diagnose.ABOUT))
    merge.add_options(_command(commands, "merge", merge.ABOUT))
    report.add_options(_command(commands, "report", report.ABOUT))
    data.add_options(_command(commands, "data", data.ABOUT, settings))
    return parser


def _add_eval(commands: Commands) -> None:
    parser = _command(commands, "eval", "evaluate a model on the domains of a configuration")
    parser.add_argument("model", metavar="MODEL", help='model folder, hub name or "tiny"')
    parser.add_argument("--config", metavar="CONFIG", type=Path, required=True, help="TOML file")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument("--num-problems", metavar="N", type=count, help="problems per domain")
    parser.add_argument("--num-samples", metavar="N", type=count, help="completions per problem")
    parser.add_argument(
        "--temperature", metavar="T", type=non_negative, help="0 for greedy decoding"
    )
    parser.add_argument("--seed", metavar="N", type=natural, help="seed of the sampling")


def _command(
    commands: Commands, name: str, about: str, settings: str = ""
) -> argparse.ArgumentParser:
    remark = " Override settings of the file with --section.key VALUE."
    return commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.{remark if name in _OWN_OPTIONS else ''}",
        epilog=settings,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _settings_for(words: Sequence[str]) -> str:
    """Return the list of settings for `--help`, which needs the configuration classes."""
    if not words or words[0] not in _OWN_OPTIONS or not {"-h", "--help"} & set(words):
        return ""
    from copd.config import describe_settings

    return f"settings and their defaults:\n\n{describe_settings()}"


def _train(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    from copd.config import load_config

    config = load_config(arguments.config, overrides)
    with stoppable(config.output_dir):
        from copd.run import commands

        commands.train(config)


def _resume(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    with stoppable(arguments.run):
        from copd.run import commands

        commands.resume(arguments.run, overrides)


def _evaluate(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
    from copd.config import load_config

    config = load_config(arguments.config, overrides)
    from copd.run import commands

    commands.evaluate_model(
        arguments.model,
        config,
        split=arguments.split,
        num_problems=arguments.num_problems,
        num_samples=arguments.num_samples,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )


@contextmanager
def stoppable(run: Path | None = None) -> Iterator[None]:
    """Turn an interrupt, a full disk or a lost branch into `Stopped`; `run` is the directory."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(130, f"interrupted. {_advice(run)}") from None
    except FloatingPointError as error:
        raise Stopped(1, f"error: {error}") from error
    except ChildProcessError as error:  # a branch was lost too often
        raise Stopped(1, f"error: {error} {_advice(run)}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"error: The disk is full: got {error}. Free some space. {_advice(run)}"
        raise Stopped(1, message) from error


def _advice(run: Path | None) -> str:
    if run is None or not (run / "config.json").is_file():
        return "Nothing can be resumed; run the command again."
    command = f"copd resume {shlex.quote(str(run))}"
    return f"Complete checkpoints are intact; continue with: {command}"


def _version() -> int:
    from importlib.metadata import version

    print(f"copd {version('copd')}")
    return 0


def _say(line: str) -> None:
    print(f"copd: {line}", file=sys.stderr)


_COMMANDS = {
    "train": _train,
    "resume": _resume,
    "plan": plan.run,
    "compare": compare.run,
    "eval": _evaluate,
    "diagnose": diagnose.run,
    "merge": merge.run,
    "report": report.run,
    "data": data.run,
}
