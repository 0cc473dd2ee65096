"""Types of numbers for argparse."""

import argparse
import math
from functools import partial


def at_least(least: int, convert: type[int] | type[float], text: str) -> float:
    """Convert an argument to a finite number of at least `least`."""
    try:
        value = convert(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        kind = "an integer" if convert is int else "a number"
        raise argparse.ArgumentTypeError(
            f"must be {kind} of at least {least}: got {text!r}. Pass another value."
        )
    return value


count = partial(at_least, 1, int)
natural = partial(at_least, 0, int)
non_negative = partial(at_least, 0, float)
