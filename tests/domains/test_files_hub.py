"""Data sets of the hub by their name, from the cache of `datasets`, without a network."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from copd.config import parse_files
from copd.domains.files import FilesDomain, open_files
from copd.domains.files.filtered import check_target, write_filtered

ROWS = [{"question": f"{i}+1?", "answer": f"so\n#### {i + 1}"} for i in range(20)]


def opened(name: str, *overrides: str) -> FilesDomain:
    return open_files("mine", parse_files(name, overrides))


def answers(domain: FilesDomain, split) -> list[str]:
    return [domain.problem(split, i).answer for i in range(domain.num_problems(split))]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate a machine without a network."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def save(cache: Path, name: str, subset: str, splits: dict[str, list[Any]]) -> None:
    """Write a data set as the library does after a download."""
    from datasets import Dataset, DatasetInfo
    from datasets.arrow_writer import ArrowWriter

    owner, _, repository = name.partition("/")
    folder = cache / f"{owner}___{repository}" / subset / "0.0.0" / "0123abcd"
    folder.mkdir(parents=True)
    sizes: Any = []
    features = Dataset.from_list(ROWS).features
    for split, rows in splits.items():
        writer = ArrowWriter(features=features, path=str(folder / f"{repository}-{split}.arrow"))
        writer.write_table(Dataset.from_list(rows).data.table)
        writer.finalize()
        sizes.append({"name": split, "num_examples": len(rows), "dataset_name": repository})
    names: Any = {"builder_name": "parquet", "dataset_name": repository, "config_name": subset}
    info = DatasetInfo(features=features, version="0.0.0", splits=sizes, **names)
    info.write_to_directory(str(folder))


def test_a_name_brings_its_splits(cache: Path):
    save(cache, "some/sums", "default", {"train": ROWS[:12], "test": ROWS[12:]})
    domain = opened("some/sums", "--validation_share", "0.3")
    assert answers(domain, "test") == [str(i) for i in range(13, 21)]
    trained = [*answers(domain, "train"), *answers(domain, "validation")]
    assert sorted(map(int, trained)) == list(range(1, 13))
    assert answers(pickle.loads(pickle.dumps(domain)), "train") == answers(domain, "train")


def test_a_subset_and_a_split_of_another_name(cache: Path):
    save(cache, "some/sums", "easy", {"train": ROWS[:5]})
    save(cache, "some/sums", "hard", {"train": ROWS[5:], "validation": ROWS[:2]})
    hard = opened("some/sums:hard", "--test_share", "0")
    assert (hard.num_problems("train"), hard.num_problems("validation")) == (15, 2)
    both = opened("some/sums:easy", "--test_path", "some/sums:hard", "--validation_share", "0")
    # it has no test split, so all of it is one: two of its prompts occur in the other subset too
    assert (both.num_problems("train"), both.num_problems("test")) == (3, 17)


def test_it_is_filtered_into_parquet(cache: Path, tmp_path: Path):
    save(cache, "some/sums", "default", {"train": ROWS[:12], "test": ROWS[12:]})
    domain = opened("some/sums", "--validation_share", "0")
    check_target(domain, tmp_path / "filtered.parquet")
    assert write_filtered(domain, {1: 0.5, 3: 0.25}, tmp_path / "filtered.parquet") == 0
    filtered = opened(str(tmp_path / "filtered.parquet"), "--test_path", "some/sums")
    trained = answers(filtered, "train") + answers(filtered, "validation")
    expected = [answers(domain, "train")[i] for i in (1, 3)]
    assert sorted(trained) == sorted(expected)
    assert answers(filtered, "test") == answers(domain, "test")


def test_a_missing_data_set_gives_one_sentence(cache: Path):
    save(cache, "some/sums", "easy", {"train": ROWS})
    save(cache, "some/sums", "hard", {"train": ROWS})
    for name, remedy in (
        ("no/where", r"^data set 'no/where' cannot be loaded: .* Connect to the hub once"),
        ("some/sums", "(easy, hard|hard, easy).* Name a subset of it: 'owner/name:subset'"),
        ("some/sums:gone", "Name a subset of it"),
    ):
        with pytest.raises(ValueError, match=remedy) as caught:
            opened(name)
        assert "\n" not in str(caught.value)
