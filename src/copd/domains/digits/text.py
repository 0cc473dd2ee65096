"""Text suites of the digits world: signed additions, comparisons, small word problems."""

import numpy as np

from copd.domains.digits.generator import Question, SuiteGenerator, joined, running
from copd.types import Split, Text


def chain(rng: np.random.Generator, split: Split) -> Question:
    """Ask for a signed sum: `Compute 3-4+8-2.`

    The careless procedure drops the signs.
    """
    terms = _terms(rng, rng.integers(4, 6))
    totals, unsigned = running(terms), running([abs(term) for term in terms])
    return Question(
        parts=(Text(f"Compute {_expression(terms)}."),),
        answer=str(totals[-1]),
        worked=joined(totals),
        careless=joined(unsigned),
        careless_answer=str(unsigned[-1]),
    )


def compare(rng: np.random.Generator, split: Split) -> Question:
    """Compare three expressions: `Which is smallest? a 3-4 b 8-2 c 1+6`.

    The careless procedure drops the signs and always takes the largest.
    """
    while True:
        options = [_terms(rng, 2) for _ in range(3)]
        values = [sum(option) for option in options]
        unsigned = [sum(map(abs, option)) for option in options]
        if len(set(values)) == 3 and len(set(unsigned)) == 3:
            break
    word, pick = (("largest", np.argmax), ("smallest", np.argmin))[rng.integers(2)]
    listed = " ".join(
        f"{label} {_expression(terms)}" for label, terms in zip("abc", options, strict=True)
    )
    return Question(
        parts=(Text(f"Which is {word}? {listed}"),),
        answer="abc"[int(pick(values))],
        worked=joined(values),
        careless=joined(unsigned),
        careless_answer="abc"[int(np.argmax(unsigned))],
    )


def story(rng: np.random.Generator, split: Split) -> Question:
    """Tell a story of changes: `Ann has 5 pens, gets 3, loses 2. How many?`

    The careless procedure adds up all numbers.
    """
    changes: list[int] = []
    total = start = int(rng.integers(1, 10))
    for _ in range(rng.integers(3, 5)):
        change = int(rng.choice([step for step in range(-9, 10) if step and total + step >= 0]))
        changes.append(change)
        total += change
    name, thing = rng.choice(["Ann", "Bob", "Eve"]), rng.choice(["pens", "coins", "cards"])
    events = ", ".join(f"{'gets' if change > 0 else 'loses'} {abs(change)}" for change in changes)
    totals = running([start, *changes])
    unsigned = running([start, *map(abs, changes)])
    return Question(
        parts=(Text(f"{name} has {start} {thing}, {events}. How many?"),),
        answer=str(total),
        worked=joined(totals),
        careless=joined(unsigned),
        careless_answer=str(unsigned[-1]),
    )


def _terms(rng: np.random.Generator, count: int | np.integer) -> list[int]:
    """Draw `count` digits from 1 to 9, the first positive, the others of either sign."""
    digits = rng.integers(1, 10, size=count)
    signs = rng.choice([-1, 1], size=count)
    signs[0] = 1
    return (digits * signs).tolist()


def _expression(terms: list[int]) -> str:
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])


SUITES: dict[str, SuiteGenerator] = {"chain": chain, "compare": compare, "story": story}
