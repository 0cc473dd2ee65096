"""What the comparison of engines makes of its clocks."""

import pytest

pytest.importorskip("ray")

from benchmarks.engines import BEGIN, END, Turn, Work, between_marks, covered, page, rows, settings


def turn(seconds: float, *walls: tuple[float, float], stage: str = "rlvr") -> Turn:
    """A step whose verbs kept text and image busy for so long, and their CPUs for half of it."""
    work, begin = [], 100.0
    for text, image in walls:
        work.append(Work("text", begin, begin + text, text / 2))
        work.append(Work("image", begin, begin + image, image / 2))
        begin += max(text, image)
    return Turn(stage, seconds, work)


def test_overhead_is_when_no_branch_worked():
    assert turn(4.0, (1.0, 2.0), (1.5, 0.5)).overhead == pytest.approx(0.5)
    assert Turn("rlvr", 1.0, []).overhead == 1.0


def test_intervals_that_overlap_or_lie_within_each_other_count_once():
    assert covered([(5.0, 6.0), (0.0, 3.0), (1.0, 2.0), (2.5, 4.0)]) == 5.0
    assert covered([]) == 0.0


def test_a_table_has_medians_of_steps_and_of_rounds():
    walls = ((1.0, 2.0), (1.5, 0.5))  # 5 s one after another, 3.5 s verb by verb, 2.5 s each
    pairs = [
        (turn(5.0, *walls), turn(4.0, *walls)),
        (turn(6.0, *walls, stage="mutual"), turn(3.5, *walls, stage="mutual")),
        (turn(5.0, *walls), turn(5.0, *walls)),
        (turn(6.0, *walls, stage="mutual"), turn(3.5, *walls, stage="mutual")),
    ]
    table = dict(rows(pairs, 2))
    assert table[""] == ["rlvr", "mutual", "whole rounds"]
    ratio = table["**throughput, Ray / local**"]
    assert ratio == ["1.12 (1.06 to 1.19)", "1.71 (1.71 to 1.71)", "1.38 (1.34 to 1.42)"]
    assert table["the same, were there nothing to wait for"][0] == "2.00 (2.00 to 2.00)"
    overhead = table["**overhead of the engine, % of a step on Ray**"]
    assert overhead[0] == "21.25 (16.88 to 25.62)" and overhead[1] == "0.00 (0.00 to 0.00)"
    assert table["CPU time of the branches, Ray / local"][2] == "1.00 (1.00 to 1.00)"
    assert "2 rounds after one to warm up" in page(pairs, 2)


def test_a_page_keeps_what_is_around_the_marks():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert between_marks(text, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    with pytest.raises(ValueError, match="Put them where the table belongs"):
        between_marks("no marks", "new")


def test_both_engines_get_the_same_two_branches():
    local, ray = settings("local"), settings("ray")
    assert local.branches == ray.branches == {"text": "text", "image": "image"}
    assert local.engine.num_threads == ray.engine.num_threads == 1
