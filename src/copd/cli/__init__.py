"""The command line: words in, exit code out. Knows no torch; what needs it is imported when asked.

Options are argparse's and overrides are ours: a setting below a name that the user chose
(`--domains.text.suites`) has no static type from which a parser could be generated.
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
"""Commands in which every other option is an override, dotted or not."""


class Stopped(Exception):
    """Work cut short through no mistake in it; the message says how to go on."""

    def __init__(self, exit_code: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: 0 done, 2 a mistake of the user, 130 interrupted, 1 a full disk."""
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
    """Separate `--section.key VALUE` from the words that argparse should see."""
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
    """The commands and their options; `settings` ends the help of commands that train or plan."""
    about = "Co-Evolving Policy Distillation: experts that teach each other, merged into one model."
    parser = argparse.ArgumentParser(prog="copd", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    train = _command(commands, "train", "train as the configuration says", settings)
    train.add_argument("config", metavar="CONFIG", type=Path, help="TOML file")
    about = "continue a run from its newest complete checkpoint"
    resume = _command(commands, "resume", about, "Elsewhere, too: --engine.type local, or ray.")
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
    parser = _command(commands, "eval", "measure a model on the domains of a configuration")
    parser.add_argument("model", metavar="MODEL", help='model folder, hub name or "tiny"')
    parser.add_argument("--config", metavar="CONFIG", type=Path, required=True, help="TOML file")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument("--num-problems", metavar="N", type=count, help="problems per domain")
    parser.add_argument("--num-samples", metavar="N", type=count, help="completions per problem")
    parser.add_argument("--temperature", metavar="T", type=non_negative, help="0 is greedy")
    parser.add_argument("--seed", metavar="N", type=natural, help="seed of the sampling")


def _command(
    commands: Commands, name: str, about: str, settings: str = ""
) -> argparse.ArgumentParser:
    remark = " Settings of the file can follow as --section.key VALUE."
    return commands.add_parser(
        name,
        help=about,
        description=f"{about[0].upper()}{about[1:]}.{remark if name in _OWN_OPTIONS else ''}",
        epilog=settings,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _settings_for(words: Sequence[str]) -> str:
    """The list of settings, made only when it is asked for: it needs the configuration classes."""
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

    commands.evaluate(
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
    """Turn an interrupt, a full disk or a diverged run into a sentence; `run` is its directory."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(130, f"interrupted. {_advice(run)}") from None
    except FloatingPointError as error:
        raise Stopped(1, f"error: {error}") from error
    except ChildProcessError as error:  # a branch was lost, and again and again
        raise Stopped(1, f"error: {error} {_advice(run)}") from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sentence = f"error: The disk is full: got {error}. Free some space. {_advice(run)}"
        raise Stopped(1, sentence) from error


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
