"""Files that a crash or a full disk cannot leave half-written, and packed columns."""

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from copd.storage import (
    RENAMED_METRICS,
    append_lines,
    make_folder_atomically,
    pack_column,
    read_lines,
    truncate_lines,
    unpack_column,
    write_atomically,
)


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_lines(path, [{"step": 1, "loss": 0.1 + 0.2}])
    append_lines(path, [{"step": 2, "loss": float("1e-300")}])
    path.write_text(path.read_text() + '{"step": 3, "lo')
    assert list(read_lines(path)) == [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1e-300}]
    truncate_lines(path, lambda record: record["step"] <= 1)
    assert path.read_text() == '{"step": 1, "loss": 0.30000000000000004}\n'


def test_metrics_under_their_former_names_are_read_under_the_current_ones(tmp_path):
    path = tmp_path / "metrics.jsonl"
    former = {f"rlvr/a/{name}": 0.5 for name in RENAMED_METRICS}
    former |= {"clipped": 1.0, "opd/from_b/b/clip_low": 0.1, "rlvr/a/reward": 0.2}
    append_lines(path, [{"step": 1, "branches": {"a": former}, "clipped": 3}, {"step": 2}])
    assert list(read_lines(path)) == [
        {
            "step": 1,
            "branches": {
                "a": {
                    **{f"rlvr/a/{name}": 0.5 for name in RENAMED_METRICS.values()},
                    "clip_ratio": 1.0,
                    "opd/from_b/b/clip_low": 0.1,
                    "rlvr/a/reward": 0.2,
                }
            },
            "clipped": 3,
        },
        {"step": 2},
    ]
    path.write_text('[]\n{"branches": [3]}\n{"branches": {"a": 3}}\n')
    assert list(read_lines(path)) == [[], {"branches": [3]}, {"branches": {"a": 3}}]


def test_a_folder_is_there_complete_or_not_at_all(tmp_path):
    target = tmp_path / "step_1"

    def fill(folder: Path) -> None:
        (folder / "a").mkdir()
        (folder / "a" / "weights").write_text("new")

    def fail(folder: Path) -> None:
        fill(folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        make_folder_atomically(target, fail)
    assert list(tmp_path.iterdir()) == []
    make_folder_atomically(target, fill)
    with pytest.raises(OSError, match="No space left"):
        make_folder_atomically(target, fail)
    assert (target / "a" / "weights").read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_leftovers_of_a_crash_do_not_disturb(tmp_path):
    """Nor does a process whose attempt was given up and that is still writing."""
    target, places = tmp_path / "step_[1]", []
    make_folder_atomically(target, places.append)
    places[0].mkdir()
    (places[0] / "half").write_text("old")

    def fill(folder: Path) -> None:
        places.append(folder)
        assert not places[0].exists() and list(folder.iterdir()) == []

    make_folder_atomically(target, fill)
    assert places[0] != places[1]
    assert list(tmp_path.iterdir()) == [target] and list(target.iterdir()) == []


def test_a_file_keeps_its_old_text_when_the_disk_is_full(small_disk):
    path = small_disk("64k") / "eval.json"
    write_atomically(path, "old")
    with pytest.raises(OSError) as caught:
        write_atomically(path, "x" * 200_000)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


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
