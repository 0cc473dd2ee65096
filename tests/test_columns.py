"""Long lists of few distinct entries: nothing is lost, and little is written."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copd.storage import pack_column, unpack_column


@given(st.lists(st.one_of(st.floats(0, 1), st.text(max_size=3)), max_size=60))
def test_unpacking_gives_what_was_packed(entries: list[object]):
    assert unpack_column(json.loads(json.dumps(pack_column(entries)))) == tuple(entries)


def test_more_than_a_byte_of_distinct_entries():
    assert unpack_column(pack_column(range(700))) == tuple(range(700))


def test_sixteen_thousand_problems_take_a_few_kilobytes():
    suites = ("chain", "compare", "story") * 5334
    solved = [float((7 * i * i) % 11 > 4) for i in range(16_000)]
    assert len(json.dumps([pack_column(suites[:16_000]), pack_column(solved)])) < 3_000


def test_too_many_distinct_entries_are_refused():
    with pytest.raises(ValueError, match=r"at most 65,536 distinct entries: got 65,537"):
        pack_column(range(2**16 + 1))
