"""The digits world: deterministic, disjoint, and right about its own answers."""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from copd.domains.digits import MODALITIES, DigitsDomain
from copd.domains.digits.scans import CELL, _archive, draw_digit, scan_ids
from copd.types import Image, Split, Text, Video

SIZES: dict[Split, int] = {"train": 900, "validation": 60, "test": 90}
ALL = [(modality, suite) for modality, suites in MODALITIES.items() for suite in suites]


def domain(modality, *suites):
    return DigitsDomain(modality, modality, suites or tuple(MODALITIES[modality]), SIZES)


def questions(modality, suite, count=150):
    one = domain(modality, suite)
    return [one.generate("train", index) for index in range(count)]


def picture(question) -> Image:
    [part] = [part for part in question.parts if isinstance(part, Image)]
    return part


def clip_of(question) -> Video:
    [part] = [part for part in question.parts if isinstance(part, Video)]
    return part


def found(pattern, text) -> str:
    match = re.search(pattern, text)
    assert match, text
    return match[1]


def words(question):
    return " ".join(part.text for part in question.parts if isinstance(part, Text))


def test_the_scans_are_scikit_learns():
    images, labels = _archive()
    original: Any = load_digits()
    assert np.array_equal(images, original.images)
    assert np.array_equal(labels, original.target)


def test_a_cell_is_a_scan_twice_as_large_shifted_by_a_pixel_at_most():
    images, labels = _archive()
    places = set()
    for seed in range(40):
        cell = draw_digit(np.random.default_rng(seed), "train", 7)
        dark = draw_digit(np.random.default_rng(seed), "train", 7, "dark")
        assert cell.dtype == dark.dtype == np.uint8
        assert np.array_equal(dark, 255 - cell)
        matches = {
            (down, right)
            for scan in images[labels == 7]
            for large in [np.kron(np.pad(scan, 1).astype(int) * 255 // 16, np.ones((2, 2), int))]
            for down in range(3)
            for right in range(3)
            if np.array_equal(large[1:-1, 1:-1][down : down + CELL, right : right + CELL], cell)
        }
        assert len(matches) == 1
        places |= matches
    assert len(places) == 9


def test_splits_share_no_scan_and_cover_all():
    ids = {
        split: {int(i) for digit in range(10) for i in scan_ids(split, digit)}
        for split in ("train", "validation", "test")
    }
    assert sum(map(len, ids.values())) == len(set.union(*ids.values())) == 1797
    assert all(len(scan_ids(split, digit)) >= 10 for split in ids for digit in range(10))


def test_a_dark_digit_is_the_negative_of_a_light_one():
    light = draw_digit(np.random.default_rng(3), "train", 7, "light")
    dark = draw_digit(np.random.default_rng(3), "train", 7, "dark")
    assert light.shape == (CELL, CELL)
    assert np.array_equal(255 - light, dark)
    assert light.max() > 200 and light.min() == 0


@pytest.mark.parametrize(("modality", "suite"), ALL)
def test_problems_are_deterministic_and_differ(modality, suite):
    one, again = domain(modality, suite), domain(modality, suite)
    first, second = one.problem("test", 5), again.problem("test", 5)
    assert first.answer == second.answer
    assert first.id == second.id
    for a, b in zip(first.messages[0].content, second.messages[0].content, strict=True):
        assert type(a) is type(b)
        if isinstance(a, Image) and isinstance(b, Image):
            assert np.array_equal(a.pixels, b.pixels)
        elif isinstance(a, Video) and isinstance(b, Video):
            assert np.array_equal(a.frames, b.frames)
        else:
            assert a == b
    assert len({q.worked for q in questions(modality, suite)}) > 100
    assert one.generate("train", 5).worked != one.generate("test", 5).worked


@pytest.mark.parametrize(("modality", "suite"), ALL)
def test_answers_are_short_and_the_careless_answer_is_mostly_wrong(modality, suite):
    drawn = questions(modality, suite)
    assert all(re.fullmatch(r"-?\d+|[abc]", q.answer) for q in drawn)
    assert len({q.answer for q in drawn}) >= 3
    assert np.mean([q.answer == q.careless_answer for q in drawn]) < 0.55
    assert all(len(f"A{q.worked}#{q.answer}") < 38 for q in drawn)


def test_chains_compute():
    for question in questions("text", "chain"):
        expression = found(r"Compute ([-+\d]+)\.", words(question))
        assert sum(map(int, re.findall(r"[-+]?\d+", expression))) == int(question.answer)


def test_comparisons_compare():
    for question in questions("text", "compare"):
        options = dict(re.findall(r"([abc]) ([-+\d]+)", words(question)))
        values = {k: sum(map(int, re.findall(r"[-+]?\d+", v))) for k, v in options.items()}
        pick = max if "largest" in words(question) else min
        assert question.answer == pick(values, key=lambda label: values[label])


def test_stories_add_up_and_never_go_negative():
    for question in questions("text", "story"):
        start = int(found(r"has (\d+)", words(question)))
        changes = re.findall(r"(gets|loses) (\d+)", words(question))
        totals = np.cumsum([start, *(int(n) if v == "gets" else -int(n) for v, n in changes)])
        assert totals.min() >= 0
        assert totals[-1] == int(question.answer)


def test_pictures_hold_what_is_counted():
    for question in questions("image", "signed_sum"):
        terms = [int(term) for term in question.worked.split(":")[0].split(",")]
        assert sum(terms) == int(question.answer)
        height, width, _ = picture(question).pixels.shape
        assert height * width == CELL**2 * len(terms)
    for question in questions("image", "count"):
        digits = [int(digit) for digit in question.worked.split(":")[0].split(",")]
        bound = int(found(r"above (\d)", words(question)))
        assert sum(digit > bound for digit in digits) == int(question.answer)
    for question in questions("image", "extreme"):
        digits = sorted(int(digit) for digit in question.worked.split(":")[0].split(","))
        expected = {"Largest?": digits[-1], "Smallest?": digits[0], "Second largest?": digits[-2]}
        assert int(question.answer) == expected[words(question)]


def test_the_ink_of_a_term_is_its_sign():
    for question in questions("image", "signed_sum", 60):
        pixels = picture(question).pixels
        cells = pixels.reshape(-1, CELL, pixels.shape[1] // CELL, CELL, 3).swapaxes(1, 2)
        is_dark = cells.reshape(-1, CELL**2 * 3).mean(axis=1) > 127
        terms = question.worked.split(":")[0].split(",")
        assert all(dark for dark, term in zip(is_dark, terms, strict=True) if term[0] == "-")
        assert all(
            not dark
            for dark, term in zip(is_dark, terms, strict=True)
            if term[0] != "-" and term != "0"
        )


def test_clips_show_each_digit_for_a_second():
    for question in questions("video", "rises"):
        digits = [int(digit) for digit in re.findall(r"\d", question.worked)]
        assert sum(b > a for a, b in pairwise(digits)) == int(question.answer)
        clip = clip_of(question)
        assert clip.frames.shape == (2 * len(digits), CELL, CELL, 3)
        assert len(clip.frames) / clip.fps == len(digits)
        assert np.array_equal(clip.frames[::2], clip.frames[1::2])


def test_chosen_sums_and_order():
    for question in questions("video", "light_sum"):
        is_dark = clip_of(question).frames[::2].mean(axis=(1, 2, 3)) > 127
        seen = question.worked.split(":")[0]
        assert [mark == "_" for mark in seen] == is_dark.tolist()
        assert sum(map(int, seen.replace("_", ""))) == int(question.answer)
    for question in questions("video", "order"):
        digits = question.worked.split(":")[0].split(",")
        named = found(r"before (\d)", words(question))
        assert question.answer == digits[digits.index(named) - 1]


def test_suites_take_turns():
    one = domain("text")
    assert [one.problem("train", i).suite for i in range(4)] == [
        "chain",
        "compare",
        "story",
        "chain",
    ]


def test_the_verifier_compares_the_final_answer():
    one = domain("text", "chain")
    problem = one.problem("test", 0)
    assert one.verify(problem, f"A1,2#{problem.answer}") == 1.0
    assert one.verify(problem, f"#{problem.answer}#1{problem.answer}") == 0.0
    assert one.verify(problem, problem.answer) == 0.0


@pytest.mark.parametrize(
    ("text", "answer"), [("A1,2#7", "7"), ("#1# 2\n", "2"), ("#", ""), ("7", ""), ("", "")]
)
def test_the_extracted_answer_is_what_was_verified(text, answer):
    one = domain("text", "chain")
    assert one.extract_answer(one.problem("test", 0), text) == answer


def test_user_errors():
    with pytest.raises(ValueError, match=r"Correct domains\.text\.suites"):
        domain("text", "chains")
    with pytest.raises(IndexError, match="has 90 test problems: got index 90"):
        domain("text").problem("test", 90)
