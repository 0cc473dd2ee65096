"""Verifiers: rewards from the text of a completion and a reference answer."""

from copd.config import (
    BoxVerifier,
    ChoiceVerifier,
    ExactVerifier,
    FormatVerifier,
    FunctionVerifier,
    IntervalVerifier,
    MathVerifier,
    MixtureVerifier,
    NumericVerifier,
    VerifierConfig,
)
from copd.verifiers.answers import ANSWER_MARK, Exact, Numeric, exact, final_answer, last_number
from copd.verifiers.base import Pair, Verifier
from copd.verifiers.mixture import Format, Mixture
from copd.verifiers.regions import Box, Choice, Interval
from copd.verifiers.remote import Function, Math, check_installed

__all__ = [
    "ANSWER_MARK",
    "Pair",
    "Verifier",
    "check_functions",
    "exact",
    "final_answer",
    "last_number",
    "load_verifier",
]


def load_verifier(config: VerifierConfig) -> Verifier:
    """Build the configured verifier.

    Args:
        config: The settings of a verifier.

    Returns:
        The verifier. One that needs worker processes starts them at its first call.
    """
    match config:
        case ExactVerifier():
            return Exact(config.mark)
        case NumericVerifier():
            return Numeric(config.mark, config.tolerance)
        case ChoiceVerifier():
            return Choice(config.mark, config.letters)
        case MathVerifier():
            check_installed("math_verify", "the verifier 'math'", "math")
            return Math(config.mark, config.timeout_seconds)
        case IntervalVerifier():
            return Interval(config.mark, config.threshold)
        case BoxVerifier():
            return Box(config.mark, config.threshold, config.form)
        case FormatVerifier():
            return Format(config.tags)
        case FunctionVerifier():
            return Function(config.name, config.timeout_seconds, config.memory_gib)
        case MixtureVerifier():
            parts = tuple(load_verifier(part.verifier) for part in config.parts)
            return Mixture(tuple(part.weight for part in config.parts), parts)


def check_functions(verifier: Verifier) -> None:
    """Load the user's functions, so that a wrong name is found before training.

    Args:
        verifier: Any verifier; those of a mixture are checked too.
    """
    match verifier:
        case Function():
            verifier.check()
        case Mixture():
            for part in verifier.parts:
                check_functions(part)
