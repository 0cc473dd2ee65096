"""A branch whose numbers are not finite any more says which it is, and where. Computes nothing."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from copd.types import RolloutRequest, TrainingBatch, UpdateRequest


class Diverged(FloatingPointError):
    """A loss or gradient is not finite; the message names branch, domain, stage and step."""


@contextmanager
def annotate_divergence(branch: str, requests: Sequence[RolloutRequest]) -> Iterator[None]:
    """For sampling from a policy that may give nan."""
    try:
        yield
    except FloatingPointError as error:
        domains = dict.fromkeys(repr(r.problems[0].domain) for r in requests)
        raise Diverged(
            f"branch {branch!r} cannot sample on domain {', '.join(domains)} at "
            f"{requests[0].position}: {error}"
        ) from error


def require_finite(
    branch: str, what: str, value: float, lesson: TrainingBatch, request: UpdateRequest
) -> None:
    """For the loss and the gradient of a lesson."""
    if not math.isfinite(value):
        raise Diverged(
            f"the {what} of branch {branch!r} on domain {lesson.domain!r} is {value} at "
            f"{request.position}: the run stopped before this update. "
            "Start again in another output_dir with a lower optimizer.learning_rate."
        )
