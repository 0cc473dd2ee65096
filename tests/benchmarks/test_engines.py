"""What the comparison of engines makes of its clocks."""

import pytest

pytest.importorskip("ray")

from benchmarks.engines import (
    BEGIN,
    END,
    LOCAL,
    OTHERS,
    Turn,
    Work,
    between_marks,
    covered,
    page,
    rows,
    settings,
)


def turn(seconds: float, *walls: tuple[float, float]) -> Turn:
    """Two steps whose methods kept text and image busy for so long, and their CPUs for half of it."""
    work, begin = [], 100.0
    for text, image in walls:
        work.append(Work("text", begin, begin + text, text / 2))
        work.append(Work("image", begin, begin + image, image / 2))
        begin += max(text, image)
    return Turn(2, seconds, work)


def test_overhead_is_when_no_branch_worked():
    assert turn(4.0, (1.0, 2.0), (1.5, 0.5)).overhead == pytest.approx(0.5)
    assert Turn(1, 1.0, []).overhead == 1.0


def test_intervals_that_overlap_or_lie_within_each_other_count_once():
    assert covered([(5.0, 6.0), (0.0, 3.0), (1.0, 2.0), (2.5, 4.0)]) == 5.0
    assert covered([]) == 0.0


def test_a_table_has_medians_of_turns():
    walls = ((1.0, 2.0), (1.5, 0.5))  # 5 s one after another, 3.5 s method by method, 2.5 s each
    ahead, alone = OTHERS
    turns = [
        {LOCAL: turn(5.0, *walls), ahead: turn(3.5, *walls), alone: turn(4.0, *walls)},
        {LOCAL: turn(6.0, *walls), ahead: turn(4.0, *walls), alone: turn(5.0, *walls)},
    ]
    table = dict(rows(turns))
    assert table[""] == OTHERS == ["Ray", "Ray, a step at a time"]
    assert table["Ray, seconds per step"] == ["1.88 (1.81 to 1.94)", "2.25 (2.12 to 2.38)"]
    ratio = table["**throughput, Ray / local**"]
    assert ratio == ["1.46 (1.45 to 1.48)", "1.23 (1.21 to 1.24)"]
    assert table["the same, were there nothing to wait for"][0] == "2.20 (2.10 to 2.30)"
    overhead = table["**overhead of the engine, % of the time on Ray**"]
    assert overhead == ["6.25 (3.12 to 9.38)", "21.25 (16.88 to 25.62)"]
    assert table["CPU time of the branches, Ray / local"][0] == "1.00 (1.00 to 1.00)"
    assert "the 2 steps between two checkpoints in turn, 2 times after one" in page(turns)


def test_a_page_keeps_what_is_around_the_marks():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert between_marks(text, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="Put them where the table belongs"):
        between_marks("no marks", "new")


def test_both_engines_get_the_same_two_branches():
    local, ray = settings("local"), settings("ray")
    assert local.branches == ray.branches == {"text": "text", "image": "image"}
    assert local.engine.num_threads == ray.engine.num_threads == 1
