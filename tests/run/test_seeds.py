"""Seeds and problem streams: equal at equal places, different at others."""

from copd.run.seeds import derive_seed, draw_problems


def test_seeds_follow_from_the_place_alone():
    assert derive_seed(0, "text", 1, "sample") == derive_seed(0, "text", 1, "sample")
    places = [(seed, branch, step) for seed in range(20) for branch in "ab" for step in range(50)]
    assert len({derive_seed(*place) for place in places}) == len(places)
    assert derive_seed(1, "2") != derive_seed("1", 2) != derive_seed(12)
    assert all(0 <= derive_seed(n) < 2**63 for n in range(100))


def test_a_known_seed():
    """Changing the derivation would break the resume of runs that exist."""
    assert derive_seed(0, "text", "rlvr/text", 0, 1, "sample") == 6121453832997854544


def test_an_epoch_has_every_problem_once_and_the_next_another_order():
    def indices(start, count):
        drawn = draw_problems((0, "text"), "text", 10, start=start, count=count)
        assert all(name.domain == "text" and name.split == "train" for name in drawn)
        return [name.index for name in drawn]

    first, second = indices(0, 10), indices(10, 10)
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    assert indices(7, 6) == first[7:] + second[:3]


def test_streams_differ():
    streams = [draw_problems((0, name), "text", 1000, start=0, count=8) for name in "abc"]
    assert len(set(streams)) == 3
