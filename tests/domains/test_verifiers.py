"""Verifiers: what counts as the answer, and what earns nothing."""

import pytest

from copd.domains.verifiers import exact, final_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [("A3,4#7", "7"), ("# 7 ", "7"), ("#1#2", "2"), ("#", ""), ("7", None), ("", None)],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("#12", 1.0),
        ("12", 0.0),
        ("#012", 0.0),
        ("#12.", 0.0),
        ("#-12", 0.0),
        ("#12\n", 1.0),
        ("", 0.0),
    ],
)
def test_exact(text, reward):
    assert exact(text, "12") == reward
