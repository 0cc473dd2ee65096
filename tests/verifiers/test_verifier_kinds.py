"""Rewards of letters, intervals, boxes, layouts and mixtures on hand-written completions."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from copd.config import VerifierConfig, parse_files
from copd.verifiers import Verifier, load_verifier
from copd.verifiers.regions import box_iou, chosen_letter, interval, interval_iou


def made(**settings: Any) -> Verifier:
    return load_verifier(TypeAdapter(VerifierConfig).validate_python(settings))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("b", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("B. Paris is the capital", "B"),
        ("(B) Paris", "B"),
        ("Answer: B", "B"),
        ("answer: (B)", "B"),
        ("The answer is **B**.", "B"),
        ("So the correct answer is option B", "B"),
        ("Final Answer:\n\nB. Paris", "B"),
        (r"hence \boxed{B}", "B"),
        (r"hence \boxed{\text{B}}.", "B"),
        ("Answer: A. No, wait. Answer: B", "B"),
        ("too small is (A), so (B)", "B"),
        ("A. is wrong. The answer is B", "B"),
        ("Answer: A or B", None),
        ("Answer: (A), (B)", None),
        ("A/B/C", None),
        ("A, B, C and D", None),
        ("it is a dog", None),
        ("Because", None),
        ("Answer: Because", None),
        ("I think so", None),
        ("", None),
        ("Z", None),
    ],
)
def test_the_letter_a_text_chooses(text, letter):
    assert chosen_letter(text, "ABCD") == letter


def test_choice_compares_letters_after_the_mark():
    choice = made(type="choice", mark="#", letters="ABCD")
    assert [choice.reward(t, "B") for t in ("#B", "#(b)", "#A", "B", "#E")] == [1, 1, 0, 0, 0]
    assert choice.reward("#B", "(B)") == 1 and choice.extract_answer("#so (C)") == "C"
    assert not choice.reference_error("B")
    assert "none of the letters ABCD" in choice.reference_error("E")
    assert choice.extract_answer(choice.format_reference("B")) == "B"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[3.5, 7.0]", (3.5, 7.0)),
        ("from 3.5s to 7s", (3.5, 7.0)),
        ("3-7", (3.0, 7.0)),
        ("01:05 - 01:20.5", (65.0, 80.5)),
        ("1:00:00 to 1:00:01", (3600.0, 3601.0)),
        ("(1, 2) of 20 seconds", (1.0, 2.0)),
        ("[1, 2] or rather [2, 4]", (2.0, 4.0)),
        ("7", None),
        ("", None),
        ("9" * 400 + " " + "9" * 400, None),
    ],
)
def test_the_last_interval_of_a_text(text, found):
    assert interval(text) == found


def test_the_reward_of_an_interval_is_its_iou():
    plain = made(type="interval", mark="")
    assert plain.reward("2 to 6", "[4, 8]") == pytest.approx(2 / 6)
    assert [plain.reward(t, "[4, 8]") for t in ("4, 8", "8, 4", "9, 10", "4, 4", "no")] == [
        *(1.0, 0.0, 0.0, 0.0, 0.0)
    ]
    strict = made(type="interval", mark="", threshold=0.5)
    assert [strict.reward(t, "[4, 8]") for t in ("4, 6", "4, 5.9", "no")] == [1.0, 0.0, 0.0]
    assert plain.extract_answer("00:02 - 00:06") == "2, 6"
    assert "not a time interval" in plain.reference_error("[8, 4]")
    assert not plain.reference_error("[4, 8]")


def test_the_reward_of_a_box_is_its_iou():
    corners, size = made(type="box", mark=""), made(type="box", mark="", form="size")
    assert corners.reward("[0, 0, 10, 10]", "[5, 5, 15, 15]") == pytest.approx(25 / 175)
    assert size.reward("[0, 0, 10, 10]", "[5, 5, 10, 10]") == pytest.approx(25 / 175)
    assert corners.reward('{"bbox_2d": [1, 2, 3, 4], "label": "cat 7"}', "1,2,3,4") == 1.0
    assert corners.reward("<|box_start|>(1,2),(3,4)<|box_end|>", "1,2,3,4") == 1.0
    assert [corners.reward(t, "0 0 1 1") for t in ("1 1 0 0", "2 2 3 3", "0 0 1", "")] == [0.0] * 4
    assert corners.extract_answer("[1, 2.50, 3, 4]") == "1, 2.5, 3, 4"
    assert "not a box" in corners.reference_error("[3, 3, 3, 4]")
    assert not size.reference_error("[3, 3, 3, 4]")


numbers = st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4)


@given(numbers, numbers)
def test_iou_is_in_the_unit_interval_symmetric_and_one_for_itself(one, other):
    for overlap, a, b in ((box_iou, one, other), (interval_iou, one[:2], other[:2])):
        assert 0 <= overlap(a, b) <= 1 + 1e-9
        assert overlap(a, b) == pytest.approx(overlap(b, a))
    if one[0] + 1 < one[2] and one[1] + 1 < one[3]:
        assert box_iou(one, one) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a < b</think><answer>1</answer>", 1),
        (" <think>a\nb</think>\n\n<answer>1</answer>\n", 1),
        ("<think>a</think><answer> </answer>", 0),
        ("<think>a</think>so<answer>1</answer>", 0),
        ("<think>a</think><answer>1</answer><answer>2</answer>", 0),
        ("<think>a<answer>0</answer></think><answer>1</answer>", 0),
        ("<think>a<think>b</think></think><answer>1</answer>", 0),
        ("<answer>1</answer><think>a</think>", 0),
        ("<think>a</think><answer>1", 0),
        ("1", 0),
    ],
)
def test_format_rewards_the_layout_alone(text, reward):
    layout = made(type="format")
    assert layout.reward(text, "anything") == reward
    assert (layout.extract_answer(text) != "") == bool(reward)


def test_a_mixture_weighs_its_parts():
    mixture = made(
        type="mixture",
        parts=[
            {"weight": 0.9, "verifier": {"type": "exact", "mark": "<answer>"}},
            {"weight": 0.1, "verifier": {"type": "format"}},
        ],
    )
    texts = ["<think>a</think><answer>7</answer>", "<answer>7</answer>", "7"]
    texts.append(texts[0].replace("7", "8"))
    assert mixture.rewards([(text, "7") for text in texts]) == [1.0, 0.9, 0.0, 0.1]
    assert [mixture.reward(text, "7") for text in texts] == [1.0, 0.9, 0.0, 0.1]
    assert mixture.extract_answer(texts[1]) == "7" and "spaces" in mixture.reference_error(" 7")
    assert mixture.extract_answer(mixture.format_reference("7")) == "7"


@pytest.mark.parametrize(
    ("verifier", "remedy"),
    [
        ("{type = 'mixture', parts = [{weight = 1.0, verifier = {type = 'exact'}}]}", "at least 2"),
        (
            "{type = 'mixture', parts = [{weight = 0.9, verifier = {type = 'exact'}}, "
            "{weight = 0.2, verifier = {type = 'format'}}]}",
            "sum to 1, .* got 1.1. Change a weight",
        ),
        (
            "{type = 'mixture', parts = [{weight = 0.5, verifier = {type = 'exact'}}, "
            "{weight = 0.5, verifier = {type = 'format', tag = 'x'}}]}",
            r"parts.1.verifier.tag is not a setting.*Did you mean verifier.parts.1.verifier.tags",
        ),
        (
            "{type = 'mixture', parts = [{weight = 0.5, verifier = {type = 'exact'}}, "
            "{weight = 0.5, verifier = {type = 'maths'}}]}",
            "got 'maths', expected one of.*Did you mean 'math'",
        ),
        ("{type = 'function', name = 'rewards.score'}", "verifier.name must match pattern"),
        ("{type = 'choice', letters = 'abc'}", "verifier.letters must match pattern"),
    ],
)
def test_a_wrong_setting_is_named(verifier, remedy):
    with pytest.raises(ValueError, match=remedy):
        parse_files("a.jsonl", ["--verifier", verifier])


def test_hostile_text_costs_no_time():
    kinds = ("choice", "interval", "box", "format", "numeric", "exact")
    verifiers = [made(type=kind) for kind in kinds] + [made(type="choice", mark="")]
    chunks = ("A", "(", "answer ", "1:", "[1,", "<think>", "<", " ", "9", "\\boxed{", "#", "-1.")
    before = time.process_time()
    for chunk in chunks:
        for verifier in verifiers:
            assert 0 <= verifier.reward(chunk * (10**6 // len(chunk)), "7") <= 1
    assert time.process_time() - before < 20
