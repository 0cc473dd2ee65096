"""Problems of reasoning-gym: the same in every process, scored by their own scorers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym", reason="needs the extra gym")

from copd.config import GymConfig, load_config
from copd.domains import load_domains, with_sizes
from copd.domains.base import Domain
from copd.types import Problem, Split
from copd.verifiers.pool import pool_for

NAMES = ("chain_sum", "isomorphic_strings", "spiral_matrix")
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

RUN = """
[model]
path = "tiny"
[domains.sums]
type = "reasoning_gym"
dataset = ["chain_sum", "isomorphic_strings"]
config = { chain_sum = { max_terms = 3 } }
num_train = 40
seed = 1
system_prompt = "Be brief."
[recipe]
type = "experts"
steps = 1
"""


def made(**settings) -> Domain:
    return load_domains({"gym": GymConfig(type="reasoning_gym", **settings)})["gym"]


@pytest.fixture(scope="module")
def gym() -> Iterator[Domain]:
    yield made(
        dataset=("chain_sum", "isomorphic_strings", "spiral_matrix"),
        config={"chain_sum": {"max_terms": 3}},
    )
    pool_for.cache_clear()


def text_of(problem: Problem) -> str:
    [part] = problem.messages[-1].content
    return part.text  # type: ignore[union-attr]


def test_generators_are_suites_in_turn_and_prompts_say_how_to_answer(gym):
    problems = [gym.problem("train", index) for index in range(6)]
    assert [p.suite for p in problems] == ["chain_sum", "isomorphic_strings", "spiral_matrix"] * 2
    assert (
        gym.suites == ("chain_sum", "isomorphic_strings", "spiral_matrix")
        and gym.modality == "text"
    )
    assert all(text_of(p).endswith("between <answer> and </answer>.") for p in problems)
    assert text_of(problems[0]).count(" + ") + text_of(problems[0]).count(" - ") <= 2


def test_problems_are_the_same_in_any_order_and_in_other_processes(gym):
    positions = [(split, index) for split in SPLITS for index in (0, 1, 2, 100, 101)]
    first = {position: gym.problem(*position) for position in positions}
    pool_for.cache_clear()
    for position in reversed(positions):
        again, before = gym.problem(*position), first[position]
        assert (text_of(again), again.answer) == (text_of(before), before.answer)
    sums = {text_of(gym.problem(split, i)) for split in SPLITS for i in range(0, 60, 3)}
    assert len(sums) == 60


def test_its_own_scorer_rewards_the_answer(gym):
    sum_, spiral = gym.problem("test", 0), gym.problem("test", 2)
    right = f"I think <answer> {sum_.answer} </answer> ..."
    wrong = ("", sum_.answer, "<answer>", "<answer></answer>", "<answer>x</answer>")
    assert gym.verify_all([sum_] * 6, [right, *wrong]) == [1.0, 0, 0, 0, 0, 0]
    assert gym.verify(spiral, f"<answer>{spiral.answer}</answer>") == 1.0
    assert gym.extract_answer(sum_, right) == sum_.answer
    assert gym.verify_all([spiral, sum_], [f"<answer>{spiral.answer}</answer>", right]) == [1, 1]


@pytest.mark.slow
def test_a_scorer_that_evaluates_text_harms_nothing(gym, tmp_path: Path):
    spiral, target = gym.problem("test", 2), tmp_path / "hacked"
    hostile = [
        f"__import__('os').system('touch {target}')",
        f"open('{target}', 'w')",
        f"__import__('pathlib').Path('{target}').touch()",
        f"__import__('shutil').copy('{__file__}', '{target}')",
        f"__import__('subprocess').run(['touch', '{target}'])",
        "__import__('os')._exit(1)",
        "9**9**9**9",
        "[0] * 10**12",
        "(" * 10**5,
    ]
    texts = [f"<answer>{text}</answer>" for text in (*hostile, spiral.answer)]
    assert gym.verify_all([spiral] * len(texts), texts) == [0.0] * len(hostile) + [1.0]
    assert not target.exists()


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"dataset": "chain_sums"}, "reasoning-gym has no 'chain_sums', it has chain_sum"),
        (
            {"dataset": "chain_sum", "config": {"max_terms": 1}},
            "generator 'chain_sum': max_terms must be >= min_terms",
        ),
    ],
)
def test_a_wrong_setting_is_found_when_the_domain_is_loaded(settings, remedy):
    with pytest.raises(ValueError, match=remedy) as caught:
        made(**settings)
    assert "Correct domains.gym.dataset or domains.gym.config, or lower" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"dataset": ("a", "a")}, "name each generator once"),
        ({"dataset": ("a", "b"), "config": {"max_terms": 3}}, r"Write config = \{ a = "),
    ],
)
def test_tables_of_several_generators_are_by_their_name(settings, remedy):
    with pytest.raises(ValueError, match=remedy):
        made(**settings)


def test_a_run_is_described_by_its_configuration(gym, tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    config = load_config(path)
    said: list[str] = []
    assert with_sizes(config, said.append) == config and not said
    [domain] = load_domains(config.domains).values()
    assert [domain.num_problems(split) for split in SPLITS] == [40, 512, 1024]
    with pytest.raises(IndexError, match="has 40 train problems: got index 40"):
        domain.problem("train", 40)
    other_seed = domain.problem("test", 0)
    assert [message.role for message in other_seed.messages] == ["system", "user"]
    assert text_of(other_seed) != text_of(gym.problem("test", 0))
    pool_for.cache_clear()
