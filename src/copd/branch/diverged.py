"""Errors for losses, gradients and logits that are not finite."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from copd.types import RolloutRequest, TrainingBatch, UpdateRequest


class Diverged(FloatingPointError):
    """A loss or gradient is not finite. The message names branch, domain, stage and step."""


@contextmanager
def annotate_divergence(branch: str, requests: Sequence[RolloutRequest]) -> Iterator[None]:
    """Turn a `FloatingPointError` raised while sampling into a `Diverged` that says where."""
    try:
        yield
    except FloatingPointError as error:
        domains = dict.fromkeys(repr(r.problems[0].domain) for r in requests)
        raise Diverged(
            f"branch {branch!r} cannot sample on domain {', '.join(domains)} at "
            f"{requests[0].position}: {error}"
        ) from error


def require_finite(
    branch: str, what: str, value: float, batch: TrainingBatch, request: UpdateRequest
) -> None:
    """Raise `Diverged` if the loss or the gradient norm of a batch is not finite."""
    if not math.isfinite(value):
        raise Diverged(
            f"the {what} of branch {branch!r} on domain {batch.domain!r} is {value} at "
            f"{request.position}: the run stopped before this update. "
            "Start again in another output_dir with a lower optimizer.learning_rate."
        )
