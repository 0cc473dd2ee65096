"""The rules of thumb on made-up estimates, and means over made-up tokens."""

import math

import numpy as np
import pytest

from copd.lab.diagnose.findings import by_position, probed_tokens, summarize_tokens
from copd.lab.diagnose.verdict import WORDS, Verdict, judge, overall
from copd.monitor.results import Estimate
from copd.types import ProbeRollouts, ProblemId, TokenDivergence


def around(mean: float, half: float = 0.01) -> Estimate:
    return Estimate(mean, mean - half, mean + half)


HIGH, AHEAD = around(0.95), around(0.2, 0.1)


def verdict(overlap=HIGH, kl=0.2, difference=AHEAD, positions=None) -> Verdict:
    accuracy = {
        "student": around(0.5),
        "teacher": around(0.5 + difference.mean),
        "difference": difference,
    }
    positions = positions or [(1, 9, overlap)]
    return judge(overlap, around(kl), accuracy, positions, overlap_k=10)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "likely"),
        ({"overlap": around(0.91)}, "likely"),
        ({"overlap": around(0.905)}, "unclear"),
        ({"overlap": around(0.895)}, "unclear"),
        ({"overlap": around(0.88)}, "doubtful"),
        ({"difference": around(0.05, 0.06)}, "unclear"),
        ({"difference": around(-0.05, 0.06)}, "unclear"),
        ({"difference": around(-0.1, 0.06)}, "nothing to learn"),
        ({"difference": around(0.0, 0.0)}, "unclear"),
        ({"difference": Estimate(1.0, -math.inf, math.inf)}, "unclear"),
        ({"overlap": around(0.995), "kl": 0.005}, "nothing to teach"),
        ({"overlap": around(0.995), "kl": 0.02}, "likely"),
        ({"overlap": around(0.98), "kl": 0.005}, "likely"),
        ({"overlap": around(1.0), "kl": 0.0, "difference": around(-0.3)}, "nothing to teach"),
    ],
)
def test_the_rules(given, word):
    found = verdict(**given)
    assert found.word == word
    assert len(found.reasons) == 2 and all(reason.endswith(".") for reason in found.reasons)


def test_reasons_have_the_numbers():
    about_overlap, about_accuracy = verdict(overlap=around(0.8)).reasons
    assert "the top 10 tokens overlap by 0.800 [0.790, 0.810], less than 0.90" in about_overlap
    assert "70.0 against 50.0 % correct, +20.0 points [+10.0, +30.0]" in about_accuracy


def test_drifting_apart_is_a_reason_only_if_it_is_sure():
    def reasons(start: Estimate, end: Estimate) -> tuple[str, ...]:
        return verdict(positions=[(1, 4, start), (5, 8, around(0.7)), (9, 20, end)]).reasons

    assert (
        "0.95 at tokens 1 to 4 and 0.80 at tokens 9 to 20" in reasons(around(0.95), around(0.8))[2]
    )
    assert len(reasons(around(0.95), around(0.92))) == 2  # still high
    assert len(reasons(around(0.95), around(0.85, 0.2))) == 2  # not sure
    assert len(reasons(around(0.8), around(0.95))) == 2  # closer at the end


def test_all_domains_in_one_sentence():
    one, other = Verdict("likely", ()), Verdict("doubtful", ())
    assert overall([one, one]) == WORDS["likely"]
    assert overall([one, other]) == "The verdict differs between domains"


def made() -> tuple[ProbeRollouts, TokenDivergence]:
    """Return two problems with completions of 3 and 1, 2 and 4 tokens; token 1 is no probe."""
    probes = np.array([0, 2, 3, 4, 5, 6, 7, 8, 9], dtype=np.int32)
    size = len(probes)
    student = ProbeRollouts(
        problems=(ProblemId("d", "validation", 0), ProblemId("d", "validation", 1)),
        token_ids=np.zeros(10, dtype=np.int32),
        lengths=np.array([3, 1, 2, 4], dtype=np.int32),
        probes=probes,
        topk_ids=np.zeros((size, 1), dtype=np.int32),
        topk_logprobs=np.zeros((size, 1), dtype=np.float32),
        logprobs=np.full(size, -1.0, dtype=np.float32),
        entropies=np.full(size, 0.25, dtype=np.float32),
        entropy=0.25,
        texts=("",) * 4,
    )
    fields = np.arange(7 * size, dtype=np.float32).reshape(7, size)
    return student, TokenDivergence(*fields)


def test_tokens_have_their_problem_and_position():
    tokens = probed_tokens(*made())
    assert tokens.problem.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1]
    assert tokens.position.tolist() == [1, 3, 1, 1, 2, 1, 2, 3, 4]
    assert tokens.values["delta"].tolist() == [45 + i + 1 for i in range(9)]
    assert tokens.values["entropy_gap"].tolist() == [54 + i - 0.25 for i in range(9)]
    assert tokens.values["symmetric_kl"].tolist() == [9 + 18 + 2 * i for i in range(9)]


def test_problems_weigh_the_same_however_many_tokens_they_have():
    tokens = probed_tokens(*made())
    found = summarize_tokens(tokens, np.ones(9, dtype=bool))
    assert (found.num_problems, found.num_tokens) == (2, 9)
    # overlap is 0 to 8 here: 1 over the three tokens of the first problem, 5.5 over the others
    assert found.means["overlap"].mean == pytest.approx((1 + 5.5) / 2)
    half = 1.959963984540054 * np.std([1, 5.5], ddof=1) / np.sqrt(2)
    assert found.means["overlap"].high == pytest.approx(3.25 + half)


def test_bins_cover_every_position_once():
    tokens = probed_tokens(*made())
    bins = by_position(tokens)
    assert [(b.first, b.last) for b in bins] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert [b.summary.num_tokens for b in bins] == [4, 2, 2, 1]
    assert bins[3].summary.num_problems == 1
    assert not math.isfinite(bins[3].summary.means["overlap"].high)
    assert bins[2].summary.means["overlap"].mean == pytest.approx((1 + 7) / 2)
