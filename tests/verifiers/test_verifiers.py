"""Exact and numeric verifiers: final answers and their rewards."""

import pytest

from copd.config import ExactVerifier, NumericVerifier
from copd.verifiers import exact, final_answer, last_number, load_verifier


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


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so 12", 12.0),
        ("1,080 pens, 2,500.75 coins", 2500.75),
        ("-3.5%", -3.5),
        ("3-4", 4.0),
        ("= -4", -4.0),
        ("$18.", 18.0),
        (".5", 0.5),
        ("1,2,3", 3.0),
        ("12,34", 34.0),
        ("none", None),
        ("", None),
        ("9" * 400, None),
        ("\u0663", None),
    ],
)
def test_last_number(text, number):
    assert last_number(text) == number


def test_numbers_of_a_hostile_completion_are_found_in_linear_time():
    for text in ("1" * 200_000, "1," * 100_000, "1,111" * 50_000, "-" * 200_000, "1." * 100_000):
        last_number(text)


@pytest.mark.parametrize(
    ("text", "reward"),
    [("7 # 1080", 1.0), ("# 1,080.0", 1.0), ("1080", 0.0), ("# 1081", 0.0), ("#", 0.0), ("", 0.0)],
)
def test_numeric_compares_the_last_number_after_the_mark(text, reward):
    assert load_verifier(NumericVerifier()).reward(text, "$1,080") == reward


def test_tolerance_is_the_largest_difference():
    wide, narrow = (load_verifier(NumericVerifier(mark="", tolerance=t)) for t in (0.06, 0.04))
    assert (wide.reward("2.05", "2"), narrow.reward("2.05", "2")) == (1.0, 0.0)


def test_configured_verifiers_reward_extract_and_refuse():
    plain, number = load_verifier(ExactVerifier(mark="=")), load_verifier(NumericVerifier())
    assert (plain.reward("a=b", "b"), plain.reward("a#b", "b")) == (1.0, 0.0)
    assert (plain.extract_answer("a=b=c"), plain.extract_answer("a")) == ("c", "")
    assert number.reward("#2.0", "2") == 1
    assert (number.extract_answer("#2.0"), number.extract_answer("2")) == ("2", "")
    assert not plain.reference_error("b") and "the mark" in plain.reference_error("a=b")
    assert "spaces" in load_verifier(ExactVerifier(mark="")).reference_error(" b")
    assert not number.reference_error("2 pens")
    assert "has no number" in number.reference_error("two pens")
