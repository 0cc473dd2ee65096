"""Names of domains and branches: those that copd reserves, checks, and suggestions."""

import re
from collections.abc import Collection
from typing import Final

BASE: Final = "base"
"""The base model in results, and the frozen branch that holds it; as student of opd, a fresh copy
of it instead of an expert."""
STUDENT: Final = "student"
"""The branch of this fresh copy."""
EXPERT: Final = "expert"
"""The branch of the pilot's teacher."""
UNIFIED: Final = "unified"
"""The model of all domains: the branch of mixed and mopd, the merge of copd and experts."""
TRUNK: Final = "trunk"
"""The branch that trains on all domains in copd's topology "trunk"."""
RESERVED: Final = (BASE, STUDENT, UNIFIED, "theta_0")
"""Names that copd gives to models itself; theta_0 is the paper's name of the base."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def check_name(name: str) -> str:
    """Refuse a name that cannot be a folder, a prefix of metrics and a dotted key at once."""
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"A domain or branch name must be letters, digits, '-' and '_': got {name!r}. "
            "It names folders and metrics; choose a plain word such as 'text'."
        )
    if name in RESERVED:
        raise ValueError(
            f"The name {name!r} is taken: got it for a domain or branch, but copd itself uses "
            f"{listed(RESERVED)}. Choose another name."
        )
    return name


def check_known(key: str, name: str, known: Collection[str], what: str) -> None:
    """Refuse a reference to a domain or branch that does not exist."""
    if name not in known:
        raise ValueError(
            f"{key} must name a {what}: got {name!r}, known are {listed(known)}. "
            f"{suggestion(name, known)}"
        )


def check_complete(key: str, given: Collection[str], branches: Collection[str]) -> None:
    """Refuse a per-branch table that leaves a branch out or names one that does not exist."""
    if set(given) != set(branches):
        raise ValueError(
            f"{key} must have exactly one value per branch: got {listed(given)}, "
            f"expected {listed(branches)}. Name every branch once."
        )


def listed(names: Collection[str]) -> str:
    """Join names for a sentence."""
    return ", ".join(repr(name) for name in names) or "none"


def closest(name: str, known: Collection[str]) -> str | None:
    """Return the known name that is most similar, if any is similar."""
    import difflib  # only errors need it; help and plan start faster without

    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def suggestion(name: str, known: Collection[str]) -> str:
    """Return the remedy for a mistyped choice."""
    match = closest(name, known)
    return f"Did you mean {match!r}?" if match else "Choose one of these."
